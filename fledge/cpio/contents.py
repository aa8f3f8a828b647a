"""The facts about an initramfs that are not in its tree: archives, headers and their order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from struct import Struct
from typing import Any

import msgspec

from fledge.cpio.newc import TRAILER
from fledge.cpio.reader import Unpacked, read_entries
from fledge.report import counted, human_size
from fledge.tree import Directory, File, Node, Symlink, Tree
from fledge.tree.compression import GZIP_MAGIC
from fledge.tree.content import Span, content_digest, content_size, read_content
from fledge.tree.digest import Digest
from fledge.tree.names import split_path

_GZIP_HEADER = Struct("<2sBBIBB")
"""Magic number, method, flags, time, extra flags and system (RFC 1952, section 2.3)."""

_GZIP_LEVELS = {2: "best", 4: "fastest"}


class HeaderStat(msgspec.Struct, frozen=True):
    """The fields of stat(2) of a node after the kernel has unpacked the archives."""

    inode: int | None
    """The inode number in the header. None for a directory without an entry in any archive."""
    links: int
    """The number of names."""
    size: int
    """Size in bytes. 0 for a directory: an archive does not store it."""


class InitramfsContents(msgspec.Struct, frozen=True, dict=True):
    """An initramfs that was read. Implements `fledge.formats.Contents`."""

    path: Path
    unpacked: Unpacked

    @property
    def tree(self) -> Tree:
        """The files of all archives, unpacked one after another as the kernel does."""
        return self.unpacked.tree

    @property
    def sockets(self) -> Sequence[bytes]:
        """The paths of sockets. A tree cannot contain sockets."""
        return self.unpacked.sockets

    def stat(self, node: Node) -> HeaderStat:
        """Return the inode number, number of links and size of a node."""
        header = self.unpacked.headers.get(node)
        size = 0
        if isinstance(node, File):
            size = content_size(node.content)
        elif isinstance(node, Symlink):
            size = len(node.target)
        return HeaderStat(header.ino if header else None, self._link_counts[node], size)

    @cached_property
    def _link_counts(self) -> dict[Node, int]:
        links: dict[Node, int] = {}
        for _, node in self.tree.walk():
            if isinstance(node, Directory):
                links[node] = node.links
            else:
                links[node] = links.get(node, 0) + 1
        return links

    def facts(self) -> Mapping[str, object]:
        """Return the header of gzip and the compression and size of each archive."""
        archives = self.unpacked.archives
        return {
            **self._gzip_facts(),
            "archives": [archive.compression or "uncompressed" for archive in archives],
            "entries": [archive.entries for archive in archives],
        }

    def _gzip_facts(self) -> Mapping[str, object]:
        """Return the header of the first gzip member. Empty if the file begins otherwise."""
        header = b"".join(read_content(Span(self.path, 0, _GZIP_HEADER.size)))
        magic, _, flags, time, level, system = _GZIP_HEADER.unpack(header)
        if magic != GZIP_MAGIC:
            return {}
        return {
            "gzip flags": flags,
            "gzip time": time,
            "gzip level": _GZIP_LEVELS.get(level, level),
            "gzip system": system,
        }

    def node_facts(self, node: Node) -> Mapping[str, object]:
        """Return the fields of the node's header that are not in the tree."""
        header = self.unpacked.headers.get(node)
        if header is None:
            return {}
        return {
            "inode number": header.ino,
            "links": header.nlink,
            "device of its filesystem": f"{header.devmajor}:{header.devminor}",
            "before its name": header.name.removesuffix(_normalized(header.name)),
            "mode of symlink": f"{node.mode:04o}" if isinstance(node, Symlink) else None,
        }

    def order(self) -> Sequence[bytes]:
        """Return the paths of all entries, in the order of the file."""
        return list(self._entry_paths())

    def _entry_paths(self) -> Iterator[bytes]:
        for archive in self.unpacked.archives:
            with archive.data.path.open("rb") as file:
                for entry, _ in read_entries(file, archive.data):
                    if entry.name != TRAILER:
                        yield b"/" + _normalized(entry.name)

    def uncompressed(self) -> Sequence[Digest]:
        """Return the digest of each archive, uncompressed."""
        return [content_digest(archive.data) for archive in self.unpacked.archives]

    def describe(self) -> Mapping[str, Any]:
        """Return the archives, for ``inspect --json``."""
        return {
            "archives": [
                {
                    "offset": archive.offset,
                    "compression": archive.compression,
                    "size": archive.size,
                    "entries": archive.entries,
                    "trailer": archive.has_trailer,
                }
                for archive in self.unpacked.archives
            ]
        }

    def describe_node(self, node: Node) -> Mapping[str, Any]:
        """Return the fields of the node's header, for ``inspect --json``."""
        header = self.unpacked.headers.get(node)
        return {
            "nlink": header.nlink if header else None,
            "devmajor": header.devmajor if header else None,
            "devminor": header.devminor if header else None,
        }

    def summary(self) -> Sequence[tuple[str, str]]:
        """Return one line for each archive, as (title, text)."""
        return [
            (
                "archive",
                f"{archive.compression or 'not compressed'}, at byte {archive.offset},"
                f" {human_size(archive.size)} unpacked,"
                f" {counted(archive.entries, 'entry')}"
                f"{'' if archive.has_trailer else ', without a trailer'}",
            )
            for archive in self.unpacked.archives
        ]


def _normalized(name: bytes) -> bytes:
    """Remove ``./`` and other redundant parts from a name."""
    return b"/".join(split_path(name))
