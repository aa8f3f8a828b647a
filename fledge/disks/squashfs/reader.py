"""Reads squashfs images, whoever made them, as trees.

Nothing is unpacked before it is needed: metadata piece by piece, contents when they are read.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fledge.disks.squashfs.structures import (
    FILE_TYPES,
    NO_FRAGMENT,
    NO_XATTRS,
    InodeType,
    Superblock,
)
from fledge.disks.squashfs.volume import HINT, Entry, StoredInode, Volume
from fledge.errors import MalformedError
from fledge.tree import NANOSECONDS, Node, inodes
from fledge.tree.budget import XATTR_COST
from fledge.tree.content import Content, Packed
from fledge.tree.device_numbers import decode_device
from fledge.tree.inodes import explained, new_node, read_image
from fledge.tree.names import printable


class InodeFacts(inodes.InodeFacts, frozen=True):
    """The fields of an inode that its node does not have."""

    start: int | None
    """The position of the first block of a file; None: it has none, or is no file."""
    fragment: tuple[int, int] | None
    """The number of the fragment block that has a file's end, and where that is in it, unpacked."""


Image = inodes.Image[Superblock, InodeFacts]
"""A squashfs filesystem that was read from an image."""


def read(path: Path, only: bytes | None = None) -> Image:
    """Read the image at ``path``. The contents of files are unpacked from it later.

    ``only`` is as in `read_image`. Raises `CorruptError`, with the path, if anything that is read
    is damaged or takes more memory than a `Budget` grants; `FledgeError` if the file cannot be
    read, or is compressed in a way that fledge cannot read.
    """
    with explained(path, HINT):
        image = read_image(_Filesystem(Volume(path)), only)
    image.tree.mtime_ns = image.superblock.mkfs_time * NANOSECONDS
    return image


class _Filesystem:
    """Implements `fledge.tree.inodes.Filesystem`."""

    hint = HINT

    def __init__(self, volume: Volume) -> None:
        self.path = volume.path
        self.superblock = volume.superblock
        self.budget = volume.budget
        self.root = Entry(volume.superblock.root_inode, InodeType.DIRECTORY)
        self._volume = volume
        self._directories: dict[Entry, StoredInode] = {}
        """Those whose names were not asked for yet."""

    def describe(self, key: Entry) -> str:
        """Return where the inode is."""
        return f"inode at {key.reference:#x}"

    def node(self, key: Entry, path: bytes) -> tuple[Node, InodeFacts] | None:
        """Make the node of an inode, with its facts; None for a socket."""
        volume = self._volume
        inode = volume.inode(key.reference)
        if inode.type != key.type:
            raise MalformedError(f"its type is {inode.type}, and {key.type} where it is named")
        header = inode.header
        node = new_node(
            FILE_TYPES[inode.type] | stat.S_IMODE(header.mode),
            content=partial(self._content, inode, path),
            target=lambda: inode.target,
            device=partial(decode_device, inode.device),
        )
        if node is None:
            return None
        if inode.type is InodeType.DIRECTORY:
            self._directories[key] = inode
        node.uid, node.gid = volume.id(header.uid), volume.id(header.gid)
        node.mtime_ns = header.mtime * NANOSECONDS
        if inode.xattr != NO_XATTRS:
            node.xattrs = dict(volume.xattrs(inode.xattr))
            self.budget.charge(XATTR_COST * len(node.xattrs))
        has_fragment = inode.type is InodeType.FILE and inode.fragment != NO_FRAGMENT
        return node, InodeFacts(
            number=header.number,
            size=inode.size,
            links=inode.links,
            start=inode.start if inode.sizes else None,
            fragment=(inode.fragment, inode.offset) if has_fragment else None,
        )

    def names(self, key: Entry, parent: Entry) -> dict[bytes, Entry]:
        """Read the listing of a directory, which has no dots."""
        return self._volume.entries(self._directories.pop(key))

    def _content(self, inode: StoredInode, path: bytes) -> Content:
        if not inode.size:
            return b""
        return Packed(inode.size, self.path, partial(self._unpack, inode, path))

    def _unpack(
        self, inode: StoredInode, path: bytes, begin: int, end: int
    ) -> Iterator[tuple[int, bytes]]:
        """Yield the data of a file as `Packed.unpack` does."""
        with explained(self.path, HINT, f"inode {inode.header.number}, {printable(path)}"):
            yield from self._volume.unpack(inode, begin, end)
