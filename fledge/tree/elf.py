"""Reads the architecture of an ELF program (System V ABI, "ELF Header")."""

from __future__ import annotations

ELF_MAGIC = b"\x7fELF"
ELF_HEADER_SIZE = 20
"""Bytes of the header up to and including ``e_machine``."""

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


def architecture(program: bytes) -> str | None:
    """Return the OCI name of a program's architecture, or None if it is not an ELF file.

    ``program`` is the file's first `ELF_HEADER_SIZE` bytes, or more.
    """
    header = program[:ELF_HEADER_SIZE]
    if len(header) < ELF_HEADER_SIZE or not header.startswith(ELF_MAGIC):
        return None
    bits, byte_order = header[4], header[5]
    machine = int.from_bytes(header[18:20], "big" if byte_order == 2 else "little")
    return ARCHITECTURES.get((machine, bits, byte_order), f"ELF machine {machine}")
