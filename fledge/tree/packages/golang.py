r"""Modules of Go programs, which the linker lists in the section ``.go.buildinfo`` of an ELF file.

The section, as Go writes it since 1.18 (debug/buildinfo in Go's sources)::

     0  "\xff Go buildinf:"
    14  size of a pointer   u8, not used
    15  flags               u8: 2 says that the strings follow; older programs have pointers
    32  version of Go       length as a varint, text
        modules             length as a varint, text, in markers of 16 bytes

Modules are lines: ``path``, ``mod`` and ``dep`` with name, version and checksum; ``=>`` is what
replaces the ``dep`` before it.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

from fledge.errors import MalformedError
from fledge.tree.content import Content, content_size
from fledge.tree.elf import ELF_MAGIC
from fledge.tree.packages.package import Ecosystem, Meter, Package, optional_text, text

SECTION = b".go.buildinfo"
MAGIC = b"\xff Go buildinf:"
INLINE = 2
"""The flag that says that the strings follow."""
STRINGS = 32
"""Where they begin."""
MARKER = 16
"""Bytes before and after the list of modules."""

MAX_SECTIONS = 1 << 10
"""Maximum sections of a program that is looked at; Go writes about 25."""
MAX_NAMES = 1 << 16
"""Maximum bytes of the names of sections."""
MAX_INFO = 4 << 20
"""Maximum bytes of the section."""

FOLDERS = (".", "/")
"""What the name of a folder begins with that replaces a module."""
DEVELOPMENT = "(devel)"
"""The version of a module that was built from a working copy."""


def _matches(path: bytes, mode: int) -> bool:
    return bool(mode & 0o111)


def _read(path: bytes, content: Content, meter: Meter) -> Iterator[Package]:
    if content_size(content) < 64:
        return
    header = meter.read(content, 0, 64)
    if not header.startswith(ELF_MAGIC):
        return
    info = _find_section(header, content, meter)
    if not info.startswith(MAGIC) or len(info) < STRINGS:
        return
    if not info[15] & INLINE:
        raise MalformedError("it was built by Go before 1.18, whose lists fledge does not read")
    go, end = _string(info, STRINGS)
    yield Package("golang", "stdlib", text(go, "version of Go").removeprefix("go"), path)
    modules, _ = _string(info, end)
    last: Package | None = None
    for line in io.BytesIO(modules[MARKER:-MARKER]):
        kind, *fields = line.rstrip(b"\n").split(b"\t", 3)
        if kind not in (b"mod", b"dep", b"=>") or len(fields) < 2:
            continue
        name, version = text(fields[0], "module"), optional_text(fields[1])
        if last and kind != b"=>":
            yield last
        elif last and name.startswith(FOLDERS):
            name = last.name
        last = Package("golang", name, version if version != DEVELOPMENT else "", path)
    if last:
        yield last


def _find_section(header: bytes, content: Content, meter: Meter) -> bytes:
    """Return the section of an ELF file; empty if it has none (System V ABI, "Sections")."""
    wide, order = header[4] == 2, ">" if header[5] == 2 else "<"
    if wide:
        offset, size, count, names = struct.unpack_from(order + "Q10xHHH", header, 40)
    else:
        offset, size, count, names = struct.unpack_from(order + "I10xHHH", header, 32)
    if not 0 < count <= MAX_SECTIONS or names >= count or size != (64 if wide else 40):
        return b""
    table = meter.read(content, offset, size * count)
    if len(table) < size * count:
        return b""
    # Of each section: the offset of its name, its offset in the file, and its size.
    form = order + ("I20xQQ24x" if wide else "I12xII16x")
    sections = list(struct.iter_unpack(form, table))
    _, start, length = sections[names]
    texts = meter.read(content, start, min(length, MAX_NAMES))
    for name, start, length in sections:
        if texts[name : name + len(SECTION) + 1] == SECTION + b"\0":
            return meter.read(content, start, min(length, MAX_INFO))
    return b""


def _string(info: bytes, position: int) -> tuple[bytes, int]:
    """Return a string with its length in front of it, and where it ends."""
    length = shift = 0
    while True:
        if position >= len(info) or shift > 28:
            raise MalformedError("its list of modules is damaged")
        byte = info[position]
        position += 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    if position + length > len(info):
        raise MalformedError("its list of modules is cut short")
    return info[position : position + length], position + length


GO = Ecosystem("golang", _matches, _read)
