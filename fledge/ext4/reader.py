"""Reads ext2, ext3 and ext4 images, whoever made them, as trees.

Directories are read entry by entry, hash trees too, as the kernel does to list them. Contents stay
in the image.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from stat import S_IMODE, S_ISREG
from typing import NamedTuple

from fledge.errors import MalformedError
from fledge.ext4 import directory, xattr
from fledge.ext4.structures import (
    INODE_BLOCK_SIZE,
    ROOT,
    SECTOR_SIZE,
    Inode,
    InodeFlag,
    Superblock,
    inode_seed,
    unpack_device,
    unpack_time,
)
from fledge.ext4.volume import Volume
from fledge.tree import NO_XATTRS, File, Node, inodes
from fledge.tree.budget import XATTR_COST
from fledge.tree.content import Content, DataExtent, OpenFile, Span, Sparse
from fledge.tree.inodes import ENTRY_COST, check_target_size, explained, new_node, read_image
from fledge.tree.limits import MAX_NAME, MAX_XATTR_SIZE, POSIX_ACLS
from fledge.tree.names import printable
from fledge.tree.xattr_names import full_name


class StoredName(NamedTuple):
    """The name of an extended attribute as ext4 keeps it."""

    prefix: int
    """A number of `fledge.tree.xattr_names.PREFIXES`, or one that the kernel does not show."""
    rest: bytes


INLINE_DATA = StoredName(7, b"data")
"""The extended attribute with the rest of a content that begins in the field ``block``."""
_XATTRS_START = xattr.INODE_HEADER.pack(xattr.InodeHeader(xattr.MAGIC))
"""The beginning of the extended attributes in an inode that has any."""
INLINE_PARENT = 4
"""Bytes at the beginning of an inline directory with the inode of its parent."""


class InodeFacts(inodes.InodeFacts, frozen=True):
    """The fields of an inode that its node does not have."""

    blocks: int
    """Units of 512 bytes in use, as in stat(2)."""
    flags: int
    """Those of `fledge.ext4.structures.InodeFlag` and more."""
    generation: int
    atime: int
    """This and the other times as they are stored, see `unpack_time`."""
    ctime: int
    crtime: int
    """0 in inodes of 128 bytes, which have no place for it."""

    @property
    def atime_ns(self) -> int:
        """Nanoseconds since 1970, as the other two."""
        return unpack_time(self.atime)

    @property
    def ctime_ns(self) -> int:
        """When the inode changed last."""
        return unpack_time(self.ctime)

    @property
    def crtime_ns(self) -> int:
        """When the inode was created."""
        return unpack_time(self.crtime)


Image = inodes.Image[Superblock, InodeFacts]
"""An ext4 filesystem that was read from an image."""


def read(path: Path, only: bytes | None = None) -> Image:
    """The filesystem in the file at ``path``; the contents of files refer to it.

    ``only`` is as in `read_image`. Raises `CorruptError`, with the inode and its path, if anything
    that is read is damaged, or takes more memory than a `Budget` grants; `FledgeError` if the file
    cannot be read, if its journal has to be replayed first, or if it has features that change the
    format.
    """
    with explained(path, _Filesystem.hint):
        opened = OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        return read_image(_Filesystem(Volume(opened.descriptor, path), path, opened), only)


class _Filesystem:
    """Implements `fledge.tree.inodes.Filesystem`; its keys are the numbers of inodes."""

    hint = "Build or copy it again; e2fsck -fn shows all that is damaged."
    root = ROOT

    def __init__(self, volume: Volume, path: Path, opened: OpenFile) -> None:
        """``opened`` is the image, in which the contents of files stay."""
        self.path = path
        self._opened = opened
        self.superblock = volume.superblock
        self.budget = volume.budget
        self._volume = volume
        self._xattr_blocks: dict[int, dict[bytes, bytes]] = {}
        self._values: dict[int, bytes] = {}

    def describe(self, key: int) -> str:
        """``inode 12``."""
        return f"inode {key}"

    def node(self, key: int, path: bytes) -> tuple[Node, InodeFacts] | None:
        """The node of an inode, with its facts; None for a socket."""
        if key < self.superblock.first_ino and key != ROOT:
            raise MalformedError("it is reserved and cannot have a name")
        inode = self._volume.inode(key)
        if inode.flags & InodeFlag.EA_INODE:
            raise MalformedError("it is the value of an extended attribute and cannot have a name")
        node: Node | None
        if S_ISREG(inode.mode):  # as nearly all are
            node = File(mode=S_IMODE(inode.mode), content=self._content(key, inode))
        else:
            node = new_node(
                inode.mode,
                content=partial(self._content, key, inode),
                target=partial(self._target, key, inode),
                device=partial(unpack_device, inode.block),
            )
        if node is None:
            return None
        node.uid, node.gid, node.mtime_ns = inode.uid, inode.gid, unpack_time(inode.mtime)
        if inode.file_acl or inode.xattrs.startswith(_XATTRS_START):
            node.xattrs = self._xattrs(inode)
        blocks = inode.sectors
        if inode.flags & InodeFlag.HUGE_FILE:
            blocks *= self._volume.block_size // SECTOR_SIZE
        return node, InodeFacts(
            key,
            inode.size,
            inode.links,
            blocks,
            inode.flags,
            inode.generation,
            inode.atime,
            inode.ctime,
            inode.crtime,
        )

    def names(self, key: int, parent: int) -> dict[bytes, int]:
        """The entries of a directory: the numbers of inodes by name, without the two dots."""
        names: dict[bytes, int] = {}
        dots = {b".": key, b"..": parent}
        charge = self.budget.charge
        for part in self._directory_parts(key, parent):
            for child, name in directory.unpack_entries(part):
                if name in dots:
                    if child != dots[name]:
                        raise MalformedError(
                            f"its {name.decode()} is inode {child}, not {dots[name]}"
                        )
                elif not name or len(name) > MAX_NAME or b"/" in name or b"\0" in name:
                    raise MalformedError(f"{printable(name)!r} cannot be a name")
                elif name in names:
                    raise MalformedError(f"it has two entries {printable(name)!r}")
                else:
                    charge(ENTRY_COST)
                    names[name] = child
        return names

    def _content(self, number: int, inode: Inode) -> Content:
        """The content of a file, which stays in the image if it has blocks of its own."""
        size = inode.size
        if inode.flags & InodeFlag.INLINE_DATA:
            return self._whole(number, inode)
        block_size = self._volume.block_size
        found = self._volume.extents(number, inode)
        if size == 0:
            return b""
        if found and not found[0].logical and found[0].length * block_size >= size:
            position = found[0].physical * block_size
            return Span(self.path, position, size, opened=self._opened)
        extents = tuple(
            DataExtent(
                offset=offset,
                source=extent.physical * block_size,
                length=min(extent.length * block_size, size - offset),
            )
            for extent in found
            if (offset := extent.logical * block_size) < size
        )
        return Sparse(size, self.path, extents, opened=self._opened)

    def _whole(self, number: int, inode: Inode) -> bytes:
        """The content of an inode in memory."""
        self.budget.charge(inode.size)
        if inode.flags & InodeFlag.INLINE_DATA:
            data = b"".join(self._inline_parts(inode))
            # The kernel reads zeros behind the end of it.
            data = data.ljust(inode.size, b"\0")
        else:
            data = b"".join(self._volume.blocks(number, inode))
        return data[: inode.size]

    def _inline_parts(self, inode: Inode) -> tuple[bytes, bytes]:
        """Inline data: the part in the field ``block``, and the rest in an extended attribute."""
        return inode.block, dict(self._inside(inode)).get(INLINE_DATA, b"")

    def _target(self, number: int, inode: Inode) -> bytes:
        check_target_size(inode.size)
        if inode.size < INODE_BLOCK_SIZE and not inode.flags & InodeFlag.INLINE_DATA:
            return inode.block[: inode.size]
        return self._whole(number, inode)

    def _directory_parts(self, number: int, parent: int) -> Iterator[bytes]:
        """The blocks of a directory, or its inline data. No entry reaches from one to the next."""
        volume = self._volume
        inode = volume.inode(number)
        if inode.flags & InodeFlag.INLINE_DATA:
            first, second = self._inline_parts(inode)
            stored = int.from_bytes(first[:INLINE_PARENT], "little")
            if stored != parent:
                raise MalformedError(f"its .. is inode {stored}, not {parent}")
            yield first[INLINE_PARENT:]
            yield second
            return
        if inode.size % volume.block_size:
            raise MalformedError(f"a directory cannot have {inode.size} bytes")
        seed = inode_seed(volume.seed, number, inode.generation)
        indexed = bool(inode.flags & InodeFlag.INDEX)
        for position, block in enumerate(volume.blocks(number, inode)):
            if volume.has_checksums and not directory.is_intact(block, seed, indexed=indexed):
                raise MalformedError(f"the checksum of its block {position} is wrong")
            yield block

    def _xattrs(self, inode: Inode) -> Mapping[bytes, bytes]:
        """The extended attributes in the inode and in its block, as the kernel shows them."""
        xattrs = dict(self._xattrs_in_block(inode.file_acl)) if inode.file_acl else {}
        xattrs.update(_shown(self._inside(inode)))
        self.budget.charge(XATTR_COST * len(xattrs))
        return xattrs or NO_XATTRS

    def _inside(self, inode: Inode) -> Iterator[tuple[StoredName, bytes]]:
        """The extended attributes in an inode. Their offsets count from the first entry."""
        if inode.xattrs.startswith(_XATTRS_START):
            yield from self._stored(inode.xattrs[len(_XATTRS_START) :], 0)

    def _xattrs_in_block(self, position: int) -> dict[bytes, bytes]:
        """The extended attributes in a block, which all inodes that have the same may share."""
        volume = self._volume
        if position not in self._xattr_blocks:
            block = volume.block(position)
            if xattr.HEADER.unpack_from(block).magic != xattr.MAGIC:
                raise MalformedError(f"block {position} has no extended attributes")
            if volume.has_checksums and not xattr.is_intact(block, position, volume.seed):
                raise MalformedError(
                    f"the checksum of its extended attributes is wrong (block {position})"
                )
            stored = self._stored(block, xattr.HEADER.size)
            self._xattr_blocks[position] = dict(_shown(stored))
        return self._xattr_blocks[position]

    def _stored(self, data: bytes, start: int) -> Iterator[tuple[StoredName, bytes]]:
        """Names and values from the entry at ``start`` on."""
        for name, entry in xattr.unpack(data, start):
            if entry.value_inum:
                value = self._value(entry.value_inum)
            else:
                value = data[entry.value_offs : entry.value_offs + entry.value_size]
                self.budget.charge(len(value))
            if len(value) != entry.value_size:
                raise MalformedError("the value of an extended attribute has another size")
            yield StoredName(entry.name_index, name), value

    def _value(self, number: int) -> bytes:
        """The value of an extended attribute in an inode of its own, which others may share."""
        if number not in self._values:
            inode = self._volume.inode(number)
            if not inode.flags & InodeFlag.EA_INODE or inode.size > MAX_XATTR_SIZE:
                raise MalformedError(f"inode {number} cannot be the value of an extended attribute")
            self._values[number] = self._whole(number, inode)
        return self._values[number]


def _shown(stored: Iterable[tuple[StoredName, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """The extended attributes that the kernel shows, as it shows them."""
    for (prefix, rest), value in stored:
        name = full_name(prefix, rest)
        if name in POSIX_ACLS:
            yield name, xattr.unpack_acl(value)
        elif name is not None:
            yield name, value
