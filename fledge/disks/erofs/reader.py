"""Reads erofs images, whoever made them, as trees.

Contents stay in the image. Compressed ones are decompressed when they are read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fledge.disks.erofs import directory
from fledge.disks.erofs.structures import EXTENDED, Superblock
from fledge.disks.erofs.unpack import unpack
from fledge.disks.erofs.volume import StoredInode, Volume
from fledge.errors import MalformedError
from fledge.tree import Directory, Node, inodes
from fledge.tree.budget import xattrs_cost
from fledge.tree.content import Content, OpenFile, Packed
from fledge.tree.device_numbers import decode_device
from fledge.tree.inodes import ENTRY_COST, check_target_size, explained, new_node, read_image
from fledge.tree.names import printable


class InodeFacts(inodes.InodeFacts, frozen=True):
    """The fields of an inode that its node does not have. ``number`` is the nid."""

    layout: int
    """A `DataLayout`."""
    is_extended: bool
    number32: int
    """The inode number for programs that take 32 bits."""


Image = inodes.Image[Superblock, InodeFacts]
"""An erofs filesystem that was read from an image."""


def read(path: Path, only: bytes | None = None) -> Image:
    """Read the filesystem at ``path``. The contents of files stay there.

    ``only`` is as in `read_image`. Raises `CorruptError`, with the nid and its path, if anything
    that is read is damaged, or takes more memory than a `Budget` grants; `FledgeError` if the file
    cannot be read or has features that change the format.
    """
    with explained(path, _Filesystem.hint):
        opened = OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        return read_image(_Filesystem(Volume(opened, path), path), only)


class _Filesystem:
    """Implements `fledge.tree.inodes.Filesystem`; its keys are nids."""

    hint = "Build or copy it again; fsck.erofs shows what is damaged."

    def __init__(self, volume: Volume, path: Path) -> None:
        self.path = path
        self.superblock = volume.superblock
        self.budget = volume.budget
        self.root = volume.superblock.root_nid
        self._volume = volume
        self._directories: dict[int, StoredInode] = {}
        """Those whose names were not asked for yet."""

    def describe(self, key: int) -> str:
        """Return ``nid 36``."""
        return f"nid {key}"

    def node(self, key: int, path: bytes) -> tuple[Node, InodeFacts] | None:
        """Make the node of an inode, with its facts; None for a socket."""
        stored = self._volume.inode(key)
        inode = stored.inode
        if stored.is_compressed and not stat.S_ISREG(inode.mode):
            raise MalformedError("only files can be compressed")
        node = new_node(
            inode.mode,
            content=partial(self._content, stored, path),
            target=partial(self._target, stored),
            device=partial(decode_device, inode.union),
        )
        if node is None:
            return None
        if isinstance(node, Directory):
            self._directories[key] = stored
        node.uid, node.gid, node.mtime_ns = inode.uid, inode.gid, stored.mtime_ns
        xattrs: dict[bytes, bytes] = {}
        for name, value in self._volume.xattrs(stored):
            if name in xattrs:
                raise MalformedError(f"it has two extended attributes {printable(name)}")
            xattrs[name] = value
        if xattrs:
            node.xattrs = xattrs
            self.budget.charge(xattrs_cost(xattrs))
        return node, InodeFacts(
            number=key,
            size=inode.size,
            links=inode.links,
            layout=inode.layout,
            is_extended=bool(inode.format & EXTENDED),
            number32=inode.number,
        )

    def names(self, key: int, parent: int) -> dict[bytes, int]:
        """Read the entries of a directory: nids by name, without the two dots."""
        names: dict[bytes, int] = {}
        dots = {b".": key, b"..": parent}
        last = b""
        for block in self._volume.blocks(self._volume.content(self._directories.pop(key))):
            for name, nid in directory.unpack(block):
                # The kernel searches for names, and finds only those that are in order.
                if name <= last:
                    raise MalformedError(f"its name {printable(name)} is out of order")
                last = name
                if name not in dots:
                    self.budget.charge(ENTRY_COST)
                    names[name] = nid
                elif nid != dots[name]:
                    raise MalformedError(f"its {name.decode()} is nid {nid}, not {dots[name]}")
        return names

    def _content(self, stored: StoredInode, path: bytes) -> Content:
        """Return the content of a file, whether it is compressed or not."""
        if not stored.is_compressed:
            return self._volume.content(stored)
        size = stored.inode.size
        self._volume.use(size)
        return Packed(size, self.path, partial(self._unpack, stored, path)) if size else b""

    def _unpack(
        self, stored: StoredInode, path: bytes, begin: int, end: int
    ) -> Iterator[tuple[int, bytes]]:
        """Yield the data of a compressed file as `Packed.unpack` does."""
        with explained(self.path, self.hint, f"{self.describe(stored.nid)}, {printable(path)}"):
            yield from unpack(self._volume, stored, begin, end)

    def _target(self, stored: StoredInode) -> bytes:
        """Return the target of a symlink."""
        check_target_size(stored.inode.size)
        return b"".join(self._volume.blocks(self._volume.content(stored)))
