"""Makes the program that sets up a device of the device mapper in a guest.

A kernel of a distribution does not set up a device by itself, and busybox has no program for it. So
this one is made for one device: it opens /dev/mapper/control and sends the requests that are in it,
which leave a device /dev/dm-0::

    ELF header, program header    one segment, to be read, written and executed
    code                          from `ioctls/`, the same for every device
    request                       number and size, 32 bits each, and struct dm_ioctl
    ...
    zeros                         the end of the requests

The requests create the device, load its table and activate it. The table follows the dm_ioctl of
its request: a struct dm_target_spec, and the parameters as text (include/uapi/linux/dm-ioctl.h).
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

from fledge.tree.binary import Layout, octets, u16, u32, u64

CODE = {
    "amd64": bytes.fromhex(
        "b802000000488d3d41000000be020000000f0585c0782b89c5488d1d48000000"
        "8b3385f6741a448b630489ef488d5308b8100000000f0585c078074c01e3ebe0"
        "31c0f7d889c7b83c0000000f052f6465762f6d61707065722f636f6e74726f6c"
        "0000000000000000"
    ),
    "arm64": bytes.fromhex(
        "600c809281020010420080d2080780d2010000d4a001f837f303002a74020010"
        "8156402901010034e003132a82220091a80380d2010000d48000f8379402158b"
        "f8ffff1700008052e003004ba80b80d2010000d42f6465762f6d61707065722f"
        "636f6e74726f6c00"
    ),
}
"""The code of ioctls/NAME.s, assembled, by architecture (OCI name)."""

_MACHINES = {"amd64": 62, "arm64": 183}
"""EM_X86_64 and EM_AARCH64 (elf.h)."""

_ADDRESS = 0x400000
_READ_ONLY = 1
"""DM_READONLY_FLAG."""

_CREATE, _ACTIVATE, _LOAD_TABLE = 3, 6, 9
"""DM_DEV_CREATE_CMD, DM_DEV_SUSPEND_CMD, which without its flag resumes, and DM_TABLE_LOAD_CMD."""


class ElfHeader(NamedTuple):
    """Elf64_Ehdr and the only Elf64_Phdr (elf(5))."""

    identification: Annotated[bytes, octets(0x0, 16)]
    type: Annotated[int, u16(0x10)]
    machine: Annotated[int, u16(0x12)]
    version: Annotated[int, u32(0x14)]
    entry: Annotated[int, u64(0x18)]
    program_headers: Annotated[int, u64(0x20)]
    header_size: Annotated[int, u16(0x34)]
    program_header_size: Annotated[int, u16(0x36)]
    program_header_count: Annotated[int, u16(0x38)]
    segment_type: Annotated[int, u32(0x40)]
    segment_flags: Annotated[int, u32(0x44)]
    segment_address: Annotated[int, u64(0x50)]
    segment_file_size: Annotated[int, u64(0x60)]
    segment_memory_size: Annotated[int, u64(0x68)]
    segment_alignment: Annotated[int, u64(0x70)]


class Request(NamedTuple):
    """The number and size of a request, and struct dm_ioctl."""

    number: Annotated[int, u32(0x0)]
    size: Annotated[int, u32(0x4)]
    version: Annotated[int, u32(0x8)]
    data_size: Annotated[int, u32(0x14)]
    data_start: Annotated[int, u32(0x18)]
    target_count: Annotated[int, u32(0x1C)]
    flags: Annotated[int, u32(0x24)]
    name: Annotated[bytes, octets(0x38, 128)]


class TargetSpec(NamedTuple):
    """struct dm_target_spec."""

    sector_start: Annotated[int, u64(0x0)]
    length: Annotated[int, u64(0x8)]
    next: Annotated[int, u32(0x14)]
    target_type: Annotated[bytes, octets(0x18, 16)]


ELF_HEADER = Layout(ElfHeader, size=0x78)
IOCTL_SIZE = 312
"""sizeof(struct dm_ioctl)."""
REQUEST = Layout(Request, size=8 + IOCTL_SIZE)
TARGET_SPEC = Layout(TargetSpec, size=40)


def program(architecture: str, table: str, name: str = "sealed") -> bytes:
    """Return a program that makes a read-only device, whose ``table`` has one line:
    START LENGTH TARGET PARAMETERS, the first two in sectors.

    ``architecture`` is an OCI name, one of `CODE`. The exit status is 0 or the error (errno(3)).
    """
    start, length, target, parameters = table.split(" ", 3)
    text = parameters.encode() + b"\0"
    text += bytes(-len(text) % 8)
    spec = TargetSpec(int(start), int(length), TARGET_SPEC.size + len(text), target.encode())
    requests = [
        _request(_CREATE, name),
        _request(_LOAD_TABLE, name, TARGET_SPEC.pack(spec) + text),
        _request(_ACTIVATE, name),
    ]
    return _elf(architecture, CODE[architecture] + b"".join(requests) + bytes(8))


def _request(command: int, name: str, target: bytes = b"") -> bytes:
    size = IOCTL_SIZE + len(target)
    return (
        REQUEST.pack(
            Request(
                number=3 << 30 | IOCTL_SIZE << 16 | 0xFD << 8 | command,  # _IOWR(DM_IOCTL, …)
                size=8 + size,
                version=4,
                data_size=size,
                data_start=IOCTL_SIZE,
                target_count=1 if target else 0,
                flags=_READ_ONLY,
                name=name.encode(),
            )
        )
        + target
    )


def _elf(architecture: str, code: bytes) -> bytes:
    size = ELF_HEADER.size + len(code)
    header = ElfHeader(
        identification=b"\x7fELF\x02\x01\x01",  # 64 bits, little endian
        type=2,  # ET_EXEC
        machine=_MACHINES[architecture],
        version=1,
        entry=_ADDRESS + ELF_HEADER.size,
        program_headers=0x40,
        header_size=0x40,
        program_header_size=0x38,
        program_header_count=1,
        segment_type=1,  # PT_LOAD
        segment_flags=7,
        segment_address=_ADDRESS,
        segment_file_size=size,
        segment_memory_size=size,
        segment_alignment=0x10000,
    )
    return ELF_HEADER.pack(header) + code
