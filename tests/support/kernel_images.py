"""Makes kernel images of every kind, which hold a configuration but no kernel."""

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable

import lz4.block
import pyzstd

RELEASE = "6.1.0-9-test"


def ikconfig(config: bytes) -> bytes:
    return b"IKCFG_ST" + gzip.compress(config, mtime=0) + b"IKCFG_ED"


def vmlinux(data: bytes, before: int = 1000) -> bytes:
    """An ELF file with `before` bytes in front of `data`."""
    banner = f"Linux version {RELEASE} (builder@host) #1 SMP".encode()
    return b"\x7fELF\x02\x01\x01" + banner + bytes(before) + data + bytes(1000)


def arm64_image(data: bytes) -> bytes:
    return b"MZ\0\x91".ljust(0x38, b"\0") + b"ARM\x64" + bytes(1000) + data


def riscv_image(data: bytes) -> bytes:
    return b"MZ\0\0".ljust(0x38, b"\0") + b"RSC\x05" + bytes(1000) + data


def bzimage(
    payload: bytes, *, version: int = 0x20F, release: str = RELEASE, loads_64_bit: bool = True
) -> bytes:
    """Return a bzImage with 3 sectors of setup code, and 300 bytes before the payload."""
    setup = bytearray(4 * 512)
    setup[0x1F1] = 3
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, version)
    struct.pack_into("<H", setup, 0x20E, 0x300)
    struct.pack_into("<H", setup, 0x236, int(loads_64_bit))
    struct.pack_into("<II", setup, 0x248, 300, len(payload))
    text = f"{release} (builder@host)\0".encode()
    setup[0x500 : 0x500 + len(text)] = text
    return bytes(setup) + bytes(300) + payload + bytes(500)


def zboot(payload: bytes) -> bytes:
    header = b"MZ\0\0zimg" + struct.pack("<II", 600, len(payload))
    return header.ljust(600, b"\0") + payload + bytes(100)


def lz4_legacy(data: bytes) -> bytes:
    frame = b"\x02!L\x18"
    for start in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[start : start + (8 << 20)], store_size=False)
        frame += struct.pack("<I", len(block)) + block
    return frame


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "zstd": pyzstd.compress,
    "lz4": lz4_legacy,
}


def with_size(payload: bytes, size: int) -> bytes:
    """Append the size of the kernel, as its build does for all but gzip."""
    return payload + struct.pack("<I", size)
