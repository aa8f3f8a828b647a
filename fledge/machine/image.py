"""Finds the configuration inside a kernel image.

A kernel with ``CONFIG_IKCONFIG=y`` holds its configuration between two magic numbers
(kernel/configs.c)::

    IKCFG_ST │ .config, compressed with gzip │ IKCFG_ED

It lies in the uncompressed kernel: an ELF file (vmlinux), or the Image of arm64 and riscv64.
Mostly that is compressed, as a whole (Image.gz) or as the payload of a program that unpacks it: the
bzImage of x86 (Documentation/arch/x86/boot.rst) or EFI's zboot
(drivers/firmware/efi/libstub/zboot-header.S)::

    bzImage │ setup_sects + 1 sectors of 512 bytes │ unpacker, which has the payload in it │
    zboot   │ header │ unpacker │ payload │

Some compressed payloads are followed by the size of the kernel, in 4 bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple

import msgspec

from fledge.errors import ConfigError, CorruptError, MalformedError, unreadable_argument
from fledge.machine.kconfig import MAX_CONFIG_SIZE
from fledge.tree.binary import Layout, octets, u8, u16, u32
from fledge.tree.compression import (
    GZIP_MAGIC,
    INPUT_SIZE,
    LZ4_MAGIC,
    XZ_MAGIC,
    ZSTD_MAGIC,
    gunzip,
    lz4_blocks,
    member,
    unbzip2,
    unlzma,
    unxz,
    unzstd,
)
from fledge.tree.elf import ELF_MAGIC
from fledge.tree.elf import architecture as elf_architecture
from fledge.tree.regular import open_regular

MAX_KERNEL_SIZE = 1 << 30
"""Maximum bytes of an uncompressed kernel that are searched."""

_HEAD_SIZE = 64 << 10
"""Bytes at the beginning of a file that tell what it is. The setup code of a bzImage, which names
its release, is smaller."""

_MEMBERS = {
    GZIP_MAGIC: gunzip,
    XZ_MAGIC: unxz,
    ZSTD_MAGIC: unzstd,
    b"BZh": unbzip2,
    b"]\0\0": unlzma,
}
"""What decompresses data of which compression (lib/decompress.c), by magic number."""

_LZO_MAGIC = b"\x89LZO"

_CONFIG_START = b"IKCFG_ST" + GZIP_MAGIC
_RELEASE = re.compile(rb"Linux version (\d[\w.+~-]{1,100}) \(")
_OVERLAP = 128
"""Bytes of the piece before that are searched again, so that nothing hides between two pieces."""


class _SetupHeader(NamedTuple):
    """struct setup_header, from the beginning of the file."""

    setup_sects: Annotated[int, u8(0x1F1)]
    boot_flag: Annotated[int, u16(0x1FE)]
    header: Annotated[bytes, octets(0x202, 4)]
    version: Annotated[int, u16(0x206)]
    kernel_version: Annotated[int, u16(0x20E)]
    xloadflags: Annotated[int, u16(0x236)]
    payload_offset: Annotated[int, u32(0x248)]
    payload_length: Annotated[int, u32(0x24C)]


class _ZbootHeader(NamedTuple):
    """The DOS header of an EFI zboot image."""

    magic: Annotated[bytes, octets(0x0, 2)]
    image_type: Annotated[bytes, octets(0x4, 4)]
    payload_offset: Annotated[int, u32(0x8)]
    payload_size: Annotated[int, u32(0xC)]
    pe_offset: Annotated[int, u32(0x3C)]


_SETUP_HEADER = Layout(_SetupHeader, size=0x250)
_ZBOOT_HEADER = Layout(_ZbootHeader, size=0x40)
_OLDEST_PROTOCOL = 0x208
"""The first version of the boot protocol that says where the payload is (Linux 2.6.26)."""


_LOADS_64_BIT = 1
"""The flag XLF_KERNEL_64 of ``xloadflags``."""

_PE_MACHINES = {0x8664: "amd64", 0xAA64: "arm64"}
"""Architectures (OCI names) by the field Machine of a PE header (PE format, COFF File Header)."""


class KernelFile(msgspec.Struct, frozen=True):
    """What a file says about a kernel."""

    config: bytes | None
    """The text of the configuration. None: the file is a kernel that does not hold it."""
    release: str | None = None
    """The release of the kernel, such as 6.1.0-56-cloud-amd64. None: unknown."""


def read(path: Path) -> KernelFile:
    """Read a kernel image, or a configuration; either may be compressed.

    Reads no more than `MAX_KERNEL_SIZE` and `MAX_CONFIG_SIZE`. Raises `ConfigError` if the file is
    neither or does not exist, `CorruptError` if it is damaged, `FledgeError` if it cannot be read.
    """
    try:
        if not path.is_file():
            path.stat()
            raise ConfigError(f"{path} is not a file", "Name a kernel, or its .config.")
        with path.open("rb") as file:
            return _read(file)
    except OSError as error:
        raise unreadable_argument(path, error) from error
    except MalformedError as error:
        raise ConfigError(f"{path}: {error}", "Name the .config of the kernel instead.") from error
    except CorruptError as error:
        raise CorruptError(f"{path}: {error.message}", "Build or copy it again.") from error


class Identity(msgspec.Struct, frozen=True):
    """What the beginning of a kernel image says about it."""

    architecture: str
    """The architecture (OCI name)."""
    release: str | None
    """The release, such as 6.1.0-56-cloud-amd64. None: only the rest of the file has it."""


def identify(path: Path) -> Identity:
    """Read only the beginning of a kernel image.

    Raises `ConfigError` if the file is no kernel image or does not exist, `FledgeError` if it
    cannot be read.
    """
    try:
        with open_regular(path) as raw, io.BufferedReader(raw) as file:
            head = file.read(_HEAD_SIZE)
            file.seek(0)
            if unpacked := _decompress(_pieces(file, MAX_KERNEL_SIZE)):
                head = next(unpacked, b"")
    except OSError as error:
        raise unreadable_argument(path, error) from error
    except (MalformedError, CorruptError):
        head = b""
    architecture = _architecture(head)
    if architecture is None:
        raise ConfigError(
            f"{path} is not a kernel image",
            "Name a bzImage, a vmlinux or an Image, such as /boot/vmlinuz-VERSION.",
        )
    return Identity(architecture, _setup_release(head) if len(head) >= _SETUP_HEADER.size else None)


def _architecture(head: bytes) -> str | None:
    """Return the architecture of the kernel image that begins with ``head``; None if it is none."""
    if len(head) < _SETUP_HEADER.size:
        return None
    setup, zboot = _SETUP_HEADER.unpack_from(head), _ZBOOT_HEADER.unpack_from(head)
    if setup.boot_flag == 0xAA55 and setup.header == b"HdrS":
        return "amd64" if setup.xloadflags & _LOADS_64_BIT else "386"
    if head[0x38:0x3C] == b"ARM\x64":
        return "arm64"
    if zboot.magic == b"MZ" and zboot.image_type == b"zimg":
        return _PE_MACHINES.get(int.from_bytes(head[zboot.pe_offset + 4 :][:2], "little"))
    return elf_architecture(head)


def _read(file: BinaryIO) -> KernelFile:
    head = file.read(_HEAD_SIZE)
    if payload := _payload(head):
        begin, size = payload
        file.seek(begin)
        pieces = _decompress(_pieces(file, size))
        if pieces is None:
            raise MalformedError("its payload has no known compression")
        return _search(pieces, _setup_release(head))
    file.seek(0)
    pieces = _decompress(_pieces(file, MAX_KERNEL_SIZE))
    if pieces is None:
        file.seek(0)
        pieces = _pieces(file, MAX_KERNEL_SIZE)
    pieces = filter(None, pieces)
    head = b""
    while len(head) < _ZBOOT_HEADER.size and (piece := next(pieces, b"")):
        head += piece
    pieces = chain([head], pieces)
    if _is_kernel(head):
        return _search(pieces, None)
    return KernelFile(_take(pieces, MAX_CONFIG_SIZE + 1))


def _payload(head: bytes) -> tuple[int, int] | None:
    """Return offset and size of the payload of a program that unpacks it; None if it is none."""
    if len(head) >= _SETUP_HEADER.size:
        setup = _SETUP_HEADER.unpack_from(head)
        if setup.boot_flag == 0xAA55 and setup.header == b"HdrS":
            if setup.version < _OLDEST_PROTOCOL:
                raise MalformedError("it is from before Linux 2.6.26, and does not say where it is")
            begin = ((setup.setup_sects or 4) + 1) * 512 + setup.payload_offset
            return begin, setup.payload_length
        zboot = _ZBOOT_HEADER.unpack_from(head)
        if zboot.magic == b"MZ" and zboot.image_type == b"zimg":
            return zboot.payload_offset, zboot.payload_size
    return None


def _setup_release(head: bytes) -> str | None:
    """Return the release that the setup code of a bzImage names."""
    setup = _SETUP_HEADER.unpack_from(head)
    if setup.header != b"HdrS" or not setup.kernel_version:
        return None
    found = re.match(rb"\d[\w.+~-]{1,100}", head[setup.kernel_version + 0x200 :])
    return found[0].decode() if found else None


def _is_kernel(head: bytes) -> bool:
    """Return whether ``head`` begins an uncompressed kernel: ELF, or the Image of arm64 or riscv.

    Documentation/arch/arm64/booting.rst and Documentation/arch/riscv/boot-image-header.rst.
    """
    return head.startswith(ELF_MAGIC) or head[0x38:0x3C] in (b"ARM\x64", b"RSC\x05")


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (piece := file.read(min(size, INPUT_SIZE))):
        size -= len(piece)
        yield piece


def _decompress(pieces: Iterator[bytes]) -> Iterator[bytes] | None:
    """Decompress data up to the end of its first member; None if it is not compressed."""
    start = next(pieces, b"")
    if start.startswith(LZ4_MAGIC):
        return lz4_blocks(start, pieces)
    if start.startswith(_LZO_MAGIC):
        raise MalformedError("it is compressed with LZO, which fledge cannot read")
    for magic, new in _MEMBERS.items():
        if start.startswith(magic):
            return member(start, pieces, new())
    return None


def _search(pieces: Iterator[bytes], release: str | None) -> KernelFile:
    """Search an uncompressed kernel for its configuration and, if it is unknown, its release."""
    window = b""
    searched = 0
    for piece in pieces:
        window = window[-_OVERLAP:] + piece
        if (found := window.find(_CONFIG_START)) >= 0:
            data = window[found + len(_CONFIG_START) - len(GZIP_MAGIC) :]
            return KernelFile(_take(member(data, pieces, gunzip()), MAX_CONFIG_SIZE + 1), release)
        if release is None and (banner := _RELEASE.search(window)):
            release = banner[1].decode()
        searched += len(piece)
        if searched > MAX_KERNEL_SIZE:
            break
    return KernelFile(None, release)


def _take(pieces: Iterator[bytes], size: int) -> bytes:
    """Return up to ``size`` bytes."""
    taken = bytearray()
    for piece in pieces:
        taken += piece[: size - len(taken)]
        if len(taken) == size:
            break
    return bytes(taken)
