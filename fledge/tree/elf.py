"""Reads the header of an ELF program (System V ABI, "ELF Header")."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Literal, NamedTuple

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

PT_INTERP = 3
"""The value of ``p_type`` in the program header of the interpreter's path."""
MAX_PROGRAM_HEADERS = 1 << 10


class _Form(NamedTuple):
    place: struct.Struct
    """Reads ``e_phoff``, ``e_phentsize`` and ``e_phnum`` of a file's header."""
    entry: struct.Struct
    """Reads ``p_type``, ``p_offset`` and ``p_filesz`` of a program header."""


# By EI_CLASS and EI_DATA.
PROGRAM_HEADERS = {
    bytes([bits, data]): _Form(struct.Struct(order + place), struct.Struct(order + entry))
    for bits, place, entry in ((1, "28xI10xHH", "II8xI"), (2, "32xQ14xHH", "I4xQ16xQ"))
    for data, order in ((1, "<"), (2, ">"))
}


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


def interpreter(program: bytes) -> bytes | None:
    """Return the path of the dynamic linker that an ELF program needs; None if it needs none.

    ``program`` is the file, or as much of its beginning as has the path (System V ABI, "Program
    Interpreter"); linkers put it into the first page. Malformed headers are as none.
    """
    form = PROGRAM_HEADERS.get(program[4:6])
    if not program.startswith(ELF_MAGIC) or form is None:
        return None
    with suppress(struct.error, OverflowError):
        table, entry_size, count = form.place.unpack_from(program)
        for number in range(min(count, MAX_PROGRAM_HEADERS)):
            kind, offset, size = form.entry.unpack_from(program, table + number * entry_size)
            if kind == PT_INTERP:
                return program[offset : offset + size].partition(b"\0")[0] or None
    return None


def _half(header: bytes, offset: int) -> int:
    """Return a field of 16 bits."""
    order: Literal["big", "little"] = "big" if header[5] == 2 else "little"
    return int.from_bytes(header[offset : offset + 2], order)
