"""Checks programs, because at boot it is hard to find out why one does not run."""

from __future__ import annotations

from fledge.errors import CorruptError
from fledge.net.bodies import is_web_page
from fledge.tree import elf

START_SIZE = 512
"""The bytes at the beginning of a file that the functions here need, or all if it has fewer."""
MAX_QUOTED = 40
"""Maximum bytes of a file in a message."""

SCRIPT_MAGIC = b"#!"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

KINDS = {
    b"\x1f\x8b": "is compressed with gzip; unpack it first",
    b"\xfd7zXZ\0": "is compressed with xz; unpack it first",
    b"BZh": "is compressed with bzip2; unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it first",
    b"PK\x03\x04": "is a zip archive; unpack it first",
    b"!<arch>\n": "is a package or a library; take the program out of it",
    elf.ELF_MAGIC: "is only the beginning of an ELF file",
    b"MZ": "is a program for Windows",
    b"\xcf\xfa\xed\xfe": "is a program for macOS",
    b"\xca\xfe\xba\xbe": "is a program for macOS, or a class of Java",
    SCRIPT_MAGIC: "is a script",
    BYTE_ORDER_MARK + SCRIPT_MAGIC: "is a script with a byte order mark; save it as UTF-8 without",
}
"""What people take for a program of Linux, by its first bytes. The words follow the file's name."""
TAR_MAGIC = slice(257, 262)
"""The position of ``ustar`` in a tar (POSIX.1-2017, pax, "ustar Interchange Format")."""


def check_program(start: bytes, name: str, architecture: str) -> None:
    """Check that Linux can run a program on machines of an architecture (OCI name; empty: any).

    ``start`` is its first `START_SIZE` bytes or more, ``name`` is for messages. Raises
    `CorruptError`.
    """
    if start.startswith(SCRIPT_MAGIC):
        _check_script(start, name)
        return
    machine = elf.architecture(start)
    if machine is None:
        raise CorruptError(
            f"{name} is not a program: it {describe(start)}",
            "It must be an ELF binary or a script that begins with #!.",
        )
    if not elf.is_executable(start):
        raise CorruptError(
            f"{name} is not a program, but an object file or a core dump", "Link it first."
        )
    if architecture and machine != architecture:
        raise CorruptError(
            f"{name} is for {machine}, not for {architecture}",
            "Use one for that architecture, or build for the program's: a disk image is built for"
            " that of --platform, an initramfs for that of its busybox.",
        )


def _check_script(start: bytes, name: str) -> None:
    first = start[len(SCRIPT_MAGIC) :].partition(b"\n")[0]
    if first.endswith(b"\r"):
        raise CorruptError(
            f"{name} is a script with the line ends of Windows, which Linux cannot run",
            "Save it with line ends of Unix (dos2unix).",
        )
    if not first.strip():
        raise CorruptError(
            f"{name} is a script that names no interpreter", "Begin it with #!/bin/sh, for example."
        )


def describe(start: bytes) -> str:
    """Say what a file is that is no program and begins so, in words that follow "it".

    The text is safe to print. ``start`` is as for `check_program`.
    """
    if not start:
        return "is empty"
    if is_web_page(start):
        return "is a web page"
    if start[TAR_MAGIC] == b"ustar":
        return "is a tar archive; unpack it first"
    if kind := next((kind for magic, kind in KINDS.items() if start.startswith(magic)), None):
        return kind
    line = _first_line(start)
    if line and line.isprintable():
        return f'is text that begins with "{line}"'
    return f"is data that begins with the bytes {start[:8].hex(' ')}"


def _first_line(start: bytes) -> str:
    """Return the first line that is not empty; nothing if the file is not UTF-8."""
    quoted = start[:MAX_QUOTED]
    try:
        text = quoted.decode()
    except UnicodeDecodeError as error:
        cut = error.reason == "unexpected end of data"
        text = quoted[: error.start].decode() if cut else ""
    return text.strip().partition("\n")[0].rstrip()
