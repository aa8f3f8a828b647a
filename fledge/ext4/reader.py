"""ext2, ext3 and ext4 images as trees: those that fledge writes, and those of everyone else.

The directories are read entry by entry, also those with an index, as the kernel does when it
lists them. Contents stay where they are in the image.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from fledge.errors import CorruptError, unreadable
from fledge.ext4 import directory, xattr
from fledge.ext4.structures import (
    INODE_BLOCK_SIZE,
    ROOT,
    SECTOR_SIZE,
    Damage,
    Inode,
    InodeFlag,
    Superblock,
    inode_seed,
    unpack_device,
)
from fledge.ext4.volume import Volume
from fledge.tree import BlockDevice, CharDevice, Directory, Fifo, File, Node, Symlink, Tree
from fledge.tree.content import Content, Span, Sparse
from fledge.tree.limits import MAX_NAME, MAX_PATH, MAX_XATTR_SIZE, POSIX_ACLS
from fledge.tree.names import printable

ENTRY_COST = 512
"""What a name, and the node it may be the first of, counts of `volume.MAX_KEPT`."""
XATTR_COST = 128

INLINE_DATA = (7, b"data")
"""The extended attribute that goes on where the inode's own bytes end."""
INLINE_PARENT = 4
"""Bytes at the beginning of an inline directory that name its parent."""


class InodeFacts(msgspec.Struct, frozen=True):
    """What an inode says beside what its node does. Times are nanoseconds since 1970."""

    number: int
    size: int
    """Bytes, as in stat(2); a directory has one too."""
    links: int
    blocks: int
    """Units of 512 bytes in use, as in stat(2)."""
    flags: int
    """`fledge.ext4.structures.InodeFlag` and more."""
    generation: int
    atime_ns: int
    ctime_ns: int
    crtime_ns: int
    """0 in inodes of 128 bytes, which have no place for it."""


class Image(msgspec.Struct, frozen=True):
    """All that an image holds."""

    tree: Tree
    superblock: Superblock
    inodes: dict[Node, InodeFacts]
    sockets: list[bytes]
    """Paths of sockets, which are not in the tree: they mean nothing without their process."""


def read(path: Path) -> Image:
    """The filesystem in the file at ``path``; the contents of files refer to it.

    Raises `CorruptError`, with the inode and its path, for what is damaged, or larger than
    `volume.MAX_KEPT`; `FledgeError` for what cannot be read: a file that is not there, a journal
    that is to be replayed, or features that change the format.
    """
    try:
        with path.open("rb", buffering=0) as file:
            return _Reader(Volume(file.fileno(), path), path).read()
    except Damage as damage:
        raise _corrupt(f"{path}: {damage}") from None
    except OSError as error:
        raise unreadable(path, error) from error


def _corrupt(message: str) -> CorruptError:
    return CorruptError(message, "Build or copy it again; e2fsck -fn shows all that is damaged.")


class _Reader:
    def __init__(self, volume: Volume, path: Path) -> None:
        self._volume = volume
        self._path = path
        self._nodes: dict[int, Node | None] = {}
        self._facts: dict[Node, InodeFacts] = {}
        self._xattr_blocks: dict[int, dict[bytes, bytes]] = {}
        self._values: dict[int, bytes] = {}

    def read(self) -> Image:
        sockets: list[bytes] = []
        with self._naming(ROOT, b""):
            root = self._node(ROOT)
            if not isinstance(root, Directory):
                raise Damage("it is no directory")
        tree = Tree(root.mtime_ns)
        tree.root = root
        pending = [(b"", root, ROOT, ROOT)]
        while pending:
            path, parent, number, grandparent = pending.pop()
            with self._naming(number, path):
                names = self._names(number, grandparent)
            for name, child_number in names.items():
                child_path = path + b"/" + name
                with self._naming(child_number, child_path):
                    if len(child_path) >= MAX_PATH:
                        raise Damage(f"its path has more than {MAX_PATH - 1} bytes")
                    self._volume.charge(len(child_path))
                    child = self._child(child_number)
                if child is None:
                    sockets.append(child_path[1:])
                    continue
                parent.children[name] = child
                if isinstance(child, Directory):
                    pending.append((child_path, child, child_number, number))
        return Image(tree, self._volume.superblock, self._facts, sockets)

    @contextmanager
    def _naming(self, number: int, path: bytes) -> Iterator[None]:
        """Name the inode that is damaged."""
        try:
            yield
        except Damage as damage:
            shown = printable(path) or "/"
            raise _corrupt(f"{self._path}: inode {number}, {shown}: {damage}") from None

    def _child(self, number: int) -> Node | None:
        """The node of an inode that a directory names; None for a socket."""
        if number not in self._nodes:
            if number < self._volume.superblock.first_ino:
                raise Damage("it is reserved and cannot have a name")
            return self._node(number)
        node = self._nodes[number]
        if isinstance(node, Directory):
            raise Damage("it is a directory and has another name already")
        return node

    def _node(self, number: int) -> Node | None:
        inode = self._volume.inode(number)
        if inode.flags & InodeFlag.EA_INODE:
            raise Damage("it is the value of an extended attribute and cannot have a name")
        node = self._nodes[number] = self._new_node(number, inode)
        if node is None:
            return None
        node.uid, node.gid, node.mtime_ns = inode.uid, inode.gid, inode.mtime
        node.xattrs = self._xattrs(inode)
        huge = inode.flags & InodeFlag.HUGE_FILE
        self._facts[node] = InodeFacts(
            number=number,
            size=inode.size,
            links=inode.links,
            blocks=inode.sectors * (self._volume.block_size // SECTOR_SIZE if huge else 1),
            flags=inode.flags,
            generation=inode.generation,
            atime_ns=inode.atime,
            ctime_ns=inode.ctime,
            crtime_ns=inode.crtime,
        )
        return node

    def _new_node(self, number: int, inode: Inode) -> Node | None:
        mode, file_type = stat.S_IMODE(inode.mode), stat.S_IFMT(inode.mode)
        if file_type == stat.S_IFDIR:
            return Directory(mode=mode)
        if file_type == stat.S_IFREG:
            return File(mode=mode, content=self._content(number, inode))
        if file_type == stat.S_IFLNK:
            return Symlink(mode=mode, target=self._target(number, inode))
        if file_type in (stat.S_IFCHR, stat.S_IFBLK):
            kind = CharDevice if file_type == stat.S_IFCHR else BlockDevice
            major, minor = unpack_device(inode.block)
            return kind(mode=mode, major=major, minor=minor)
        if file_type == stat.S_IFIFO:
            return Fifo(mode=mode)
        if file_type == stat.S_IFSOCK:
            return None
        raise Damage(f"its type {file_type:#o} is not known, or it is not in use")

    def _content(self, number: int, inode: Inode) -> Content:
        size = inode.size
        if inode.flags & InodeFlag.INLINE_DATA:
            return self._whole(number, inode)
        block_size = self._volume.block_size
        extents = tuple(
            (start, physical * block_size, min(length * block_size, size - start))
            for logical, physical, length in self._volume.extents(number, inode)
            if (start := logical * block_size) < size
        )
        if size == 0:
            return b""
        offset, start, length = extents[0] if extents else (0, 0, 0)
        if (offset, length) == (0, size):
            return Span(self._path, start, size)
        return Sparse(size, self._path, extents)

    def _whole(self, number: int, inode: Inode) -> bytes:
        """The content of an inode in memory."""
        self._volume.charge(inode.size)
        if inode.flags & InodeFlag.INLINE_DATA:
            data = b"".join(self._inline_parts(inode))
            if inode.size > len(data):
                raise Damage(f"it has {inode.size} bytes, but only {len(data)} are in it")
        else:
            data = b"".join(self._volume.blocks(number, inode))
        return data[: inode.size]

    def _inline_parts(self, inode: Inode) -> tuple[bytes, bytes]:
        """The two places that inline data is in."""
        stored = {(entry.prefix, entry.name): value for entry, value in self._inside(inode)}
        return inode.block, stored.get(INLINE_DATA, b"")

    def _target(self, number: int, inode: Inode) -> bytes:
        if not 0 < inode.size < MAX_PATH:
            raise Damage(f"a symlink's target cannot have {inode.size} bytes")
        if inode.size < INODE_BLOCK_SIZE and not inode.flags & InodeFlag.INLINE_DATA:
            target = inode.block[: inode.size]
        else:
            target = self._whole(number, inode)
        if b"\0" in target:
            raise Damage("its target contains a NUL")
        return target

    def _names(self, number: int, parent: int) -> dict[bytes, int]:
        """The inodes in a directory by their names, without the two dots."""
        names: dict[bytes, int] = {}
        dots = {b".": number, b"..": parent}
        for part in self._directory_parts(number, parent):
            for child, name in directory.unpack_entries(part):
                if name in dots:
                    if child != dots[name]:
                        raise Damage(f"its {name.decode()} is inode {child}, not {dots[name]}")
                elif not name or len(name) > MAX_NAME or b"/" in name or b"\0" in name:
                    raise Damage(f"{printable(name)!r} is no name")
                elif name in names:
                    raise Damage(f"it has two entries {printable(name)!r}")
                else:
                    self._volume.charge(ENTRY_COST)
                    names[name] = child
        return names

    def _directory_parts(self, number: int, parent: int) -> Iterator[bytes]:
        """What the entries of a directory are in; none goes on from one into the next."""
        volume = self._volume
        inode = volume.inode(number)
        if inode.flags & InodeFlag.INLINE_DATA:
            first, second = self._inline_parts(inode)
            stored = int.from_bytes(first[:INLINE_PARENT], "little")
            if stored != parent:
                raise Damage(f"its .. is inode {stored}, not {parent}")
            yield first[INLINE_PARENT:]
            yield second
            return
        if inode.size % volume.block_size:
            raise Damage(f"a directory cannot have {inode.size} bytes")
        seed = inode_seed(volume.seed, number, inode.generation)
        indexed = bool(inode.flags & InodeFlag.INDEX)
        for position, block in enumerate(volume.blocks(number, inode)):
            if volume.has_checksums and not directory.is_intact(block, seed, indexed=indexed):
                raise Damage(f"the checksum of its block {position} is wrong")
            yield block

    def _xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """Those in the inode and in its block, as the kernel shows them."""
        xattrs = dict(self._xattrs_in_block(inode.file_acl)) if inode.file_acl else {}
        xattrs.update(_shown(self._inside(inode)))
        self._volume.charge(XATTR_COST * len(xattrs))
        return xattrs

    def _inside(self, inode: Inode) -> Iterator[tuple[xattr.Stored, bytes]]:
        """The entries in an inode, and their values; offsets count from the first."""
        if inode.xattrs[:4] == xattr.MAGIC.to_bytes(4, "little"):
            yield from self._stored(inode.xattrs[4:], 0)

    def _xattrs_in_block(self, position: int) -> dict[bytes, bytes]:
        """The extended attributes in a block, which inodes share that have the same."""
        volume = self._volume
        if position not in self._xattr_blocks:
            block = volume.block(position)
            if xattr.HEADER.unpack_from(block)[0] != xattr.MAGIC:
                raise Damage(f"block {position} has no extended attributes")
            if volume.has_checksums and not xattr.is_intact(block, position, volume.seed):
                raise Damage(f"the checksum of its extended attributes is wrong (block {position})")
            stored = self._stored(block, xattr.HEADER.size)
            self._xattr_blocks[position] = dict(_shown(stored))
        return self._xattr_blocks[position]

    def _stored(self, data: bytes, start: int) -> Iterator[tuple[xattr.Stored, bytes]]:
        for entry in xattr.unpack(data, start):
            if entry.inode:
                value = self._value(entry.inode)
            else:
                value = data[entry.offset : entry.offset + entry.size]
                self._volume.charge(len(value))
            if len(value) != entry.size:
                raise Damage("the value of an extended attribute has another size")
            yield entry, value

    def _value(self, number: int) -> bytes:
        """The value of an extended attribute that has an inode, which others may share."""
        if number not in self._values:
            inode = self._volume.inode(number)
            if not inode.flags & InodeFlag.EA_INODE or inode.size > MAX_XATTR_SIZE:
                raise Damage(f"inode {number} cannot be the value of an extended attribute")
            self._values[number] = self._whole(number, inode)
        return self._values[number]


def _shown(stored: Iterator[tuple[xattr.Stored, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    for entry, value in stored:
        name = xattr.full_name(entry.prefix, entry.name)
        if name in POSIX_ACLS:
            yield name, xattr.unpack_acl(value)
        elif name is not None:
            yield name, value
