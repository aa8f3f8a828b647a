"""Which machine an ELF program is for (System V ABI, "ELF Header")."""

from __future__ import annotations

ELF_MAGIC = b"\x7fELF"
ELF_HEADER_SIZE = 20
"""As much of the header as says what machine the program is for, in bytes."""

# By (e_machine, 2 for 64 bits, 2 for big endian); names as in an OCI platform, that is Go's GOARCH.
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
    """The OCI name of the architecture, from a program's first bytes; None if it is no ELF."""
    header = program[:ELF_HEADER_SIZE]
    if len(header) < ELF_HEADER_SIZE or not header.startswith(ELF_MAGIC):
        return None
    bits, byte_order = header[4], header[5]
    machine = int.from_bytes(header[18:20], "big" if byte_order == 2 else "little")
    return ARCHITECTURES.get((machine, bits, byte_order), f"ELF machine {machine}")
