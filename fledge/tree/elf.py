"""Reads ELF files: for which machine they are, and what they need to run (System V ABI)."""

from __future__ import annotations

import posixpath
import re
import struct
from collections.abc import Iterator
from typing import Literal

import msgspec

from fledge.errors import MalformedError
from fledge.tree.content import Content, content_size, read_range

ELF_MAGIC = b"\x7fELF"
ELF_HEADER_SIZE = 20
"""Bytes of the header up to and including ``e_machine``."""
ET_EXEC, ET_DYN = 2, 3
"""The values of ``e_type`` that a program has; a position-independent one has the second."""

# From (e_machine, EI_CLASS, EI_DATA) to the architecture of an OCI platform, which is Go's GOARCH.
# EI_CLASS is 1 for 32 and 2 for 64 bits, EI_DATA is 1 for little and 2 for big endian.
ARCHITECTURES = {
    (3, 1, 1): "386",
    (8, 1, 2): "mips",
    (20, 1, 2): "ppc",
    (21, 2, 1): "ppc64le",
    (21, 2, 2): "ppc64",
    (22, 2, 2): "s390x",
    (40, 1, 1): "arm",
    (62, 2, 1): "amd64",
    (183, 2, 1): "arm64",
    (243, 2, 1): "riscv64",
    (258, 2, 1): "loong64",
}

_LOAD, _DYNAMIC, _INTERP = 1, 2, 3
"""Values of ``p_type`` in a program header."""
_NEEDED, _STRTAB, _RPATH, _RUNPATH = 1, 5, 15, 29
"""Values of ``d_tag`` in the dynamic section."""

MAX_SEGMENTS = 128
"""Maximum program headers that are read; linkers write about 13."""
MAX_DYNAMIC = 1 << 20
"""Maximum bytes of the dynamic section that are read."""
MAX_STRING = 4096
"""Maximum bytes of a path or name."""


def architecture(program: bytes) -> str | None:
    """Return the OCI name of a program's architecture, or None if it is not an ELF file.

    If it has no such name, what is returned is a description, such as "64-bit big-endian arm64".
    ``program`` is the file's first `ELF_HEADER_SIZE` bytes, or more.
    """
    header = program[:ELF_HEADER_SIZE]
    if len(header) < ELF_HEADER_SIZE or not header.startswith(ELF_MAGIC):
        return None
    bits, byte_order = header[4], header[5]
    machine = _half(header, 18)
    if known := ARCHITECTURES.get((machine, bits, byte_order)):
        return known
    names = (name for (number, _, _), name in ARCHITECTURES.items() if number == machine)
    if (name := next(names, None)) is None:
        return f"ELF machine {machine}"
    order = "big" if byte_order == 2 else "little"
    return f"{64 if bits == 2 else 32}-bit {order}-endian {name}"


def is_executable(program: bytes) -> bool:
    """Return whether an ELF file can be a program: it is neither an object file nor a core dump.

    ``program`` is as for `architecture`.
    """
    return _half(program, 16) in (ET_EXEC, ET_DYN)


class Binary(msgspec.Struct, frozen=True):
    """What an ELF file needs to run."""

    architecture: str
    loader: bytes = b""
    """The path of its program interpreter; empty if it is statically linked."""
    libraries: tuple[bytes, ...] = ()
    folders: tuple[bytes, ...] = ()
    """Where it has libraries looked for: DT_RUNPATH or DT_RPATH."""

    def run_path(self, path: bytes) -> Iterator[bytes]:
        """Yield these folders for the file at ``path``, which is the origin of relative ones."""
        origin = posixpath.dirname(path)
        for folder in self.folders:
            yield re.sub(rb"\$(?:ORIGIN|\{ORIGIN\})", lambda _: origin, folder)


def read(content: Content) -> Binary:
    """Read an ELF file. Raises `MalformedError`, or `FledgeError` if it cannot be read."""
    try:
        return _read(content)
    except struct.error as error:
        raise MalformedError("it is cut short") from error


def _read(content: Content) -> Binary:
    header = read_range(content, 0, 64)
    name = architecture(header)
    if name is None:
        raise MalformedError("it is not an ELF file")
    wide, order = header[4] == 2, ">" if header[5] == 2 else "<"
    offset, size, count = (
        struct.unpack_from(order + "Q14xHH", header, 32)
        if wide
        else struct.unpack_from(order + "I10xHH", header, 28)
    )
    if count > MAX_SEGMENTS or size < (56 if wide else 32):
        raise MalformedError(f"it has {count} segments of {size} bytes")
    table = read_range(content, offset, size * count)
    segments = [
        _Segment(*struct.unpack_from(order + "I4xQQ8xQQ", table, index * size))
        if wide
        else _Segment(*struct.unpack_from(order + "III4xII", table, index * size))
        for index in range(count)
    ]
    end = max((each.offset + each.size for each in segments if each.kind == _LOAD), default=0)
    if end > content_size(content):
        raise MalformedError(f"it is cut short: {content_size(content)} bytes of at least {end}")
    loader, entries = b"", b""
    for segment in segments:
        if segment.kind == _INTERP:
            loader = read_range(content, segment.offset, min(segment.size, MAX_STRING)).rstrip(
                b"\0"
            )
        elif segment.kind == _DYNAMIC:
            entries = read_range(content, segment.offset, min(segment.size, MAX_DYNAMIC))
    form = order + ("qQ" if wide else "iI")
    whole = len(entries) - len(entries) % struct.calcsize(form)
    tags = []
    for tag, value in struct.iter_unpack(form, entries[:whole]):
        if tag == 0:
            break
        tags.append((tag, value))
    strings = next((value for tag, value in tags if tag == _STRTAB), None)

    def text(at: int) -> bytes:
        place = next(
            (
                segment.offset + strings + at - segment.address
                for segment in segments
                if strings is not None
                and segment.kind == _LOAD
                and segment.address <= strings + at < segment.address + segment.size
            ),
            None,
        )
        return read_range(content, place, MAX_STRING).partition(b"\0")[0] if place else b""

    paths = [text(value) for tag, value in tags if tag == _RUNPATH]
    paths = paths or [text(value) for tag, value in tags if tag == _RPATH]
    return Binary(
        architecture=name,
        loader=loader,
        libraries=tuple(filter(None, (text(value) for tag, value in tags if tag == _NEEDED))),
        folders=tuple(each for path in paths for each in path.split(b":") if each),
    )


class _Segment(msgspec.Struct, frozen=True):
    """The fields of a program header that matter here."""

    kind: int
    offset: int
    address: int
    size: int
    """Bytes in the file."""
    memory: int


def _half(header: bytes, offset: int) -> int:
    """Return a field of 16 bits."""
    order: Literal["big", "little"] = "big" if header[5] == 2 else "little"
    return int.from_bytes(header[offset : offset + 2], order)
