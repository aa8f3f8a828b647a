"""Tar archives, valid and hostile, and images of them."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fledge.tree import Directory, File, Node, Symlink, Tree
from fledge.tree.content import Span


@dataclass
class Entry:
    """Return one entry, as `tarfile` writes it."""

    name: str
    type: bytes = tarfile.REGTYPE
    data: bytes = b""
    linkname: str = ""
    mode: int = 0o644
    pax: dict[str, str] = field(default_factory=dict)
    device: tuple[int, int] = (0, 0)
    mtime: int = 1_600_000_000
    uid: int = 0


def file(name: str, data: bytes = b"", **more: object) -> Entry:
    return Entry(name, data=data, **more)  # type: ignore[arg-type]


def folder(name: str, mode: int = 0o755) -> Entry:
    return Entry(name, tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> Entry:
    return Entry(name, tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str) -> Entry:
    return Entry(name, tarfile.LNKTYPE, linkname=target)


def pack(*entries: Entry, tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    """Return an archive of these entries, in this order."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tar_format) as tar:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type, info.linkname, info.mode = entry.type, entry.linkname, entry.mode
            info.devmajor, info.devminor = entry.device
            info.size, info.mtime, info.uid = len(entry.data), entry.mtime, entry.uid
            info.pax_headers = entry.pax
            tar.addfile(info, io.BytesIO(entry.data))
    return archive.getvalue()


END = bytes(1024)
"""The end of an archive."""


def block(
    name: bytes,
    data: bytes = b"",
    typeflag: bytes = b"0",
    magic: bytes = b"ustar\x0000",
    fields: Mapping[int, bytes] | None = None,
) -> bytes:
    """An entry as `tarfile` would never write it: ``fields`` are offsets in the header to bytes."""
    header = bytearray(512)
    plain = {
        **{0: name, 100: b"0000644", 108: b"0000000", 116: b"0000000"},
        **{124: b"%011o" % len(data), 136: b"%011o" % 1_600_000_000, 156: typeflag, 257: magic},
    }
    for offset, value in (plain | dict(fields or {})).items():
        header[offset : offset + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data + bytes(-len(data) % 512)


def base256(number: int, width: int = 8) -> bytes:
    """A number as GNU tar writes those that octal digits have no room for."""
    data = bytearray((number % (1 << 8 * width)).to_bytes(width, "big"))
    data[0] |= 0x80
    return bytes(data)


def span(folder: Path, data: bytes) -> Span:
    """Store data in a file, which exists as long as the folder."""
    path = folder / hashlib.sha256(data).hexdigest()
    path.write_bytes(data)
    return Span(path, 0, len(data))


def listing(tree: Tree) -> dict[str, str]:
    """Return entries by path: ``dir``, ``-> TARGET``, or the size of a file."""
    return {path.decode("utf-8", "replace"): _kind(node) for path, node in tree.walk() if path}


def _kind(node: Node) -> str:
    if isinstance(node, Directory):
        return "dir"
    if isinstance(node, Symlink):
        return "-> " + node.target.decode()
    if isinstance(node, File) and not isinstance(node.content, bytes):
        return str(node.content.size)
    return type(node).__name__
