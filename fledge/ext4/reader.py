"""Reads ext2, ext3 and ext4 images, whoever made them, as trees.

Directories are read entry by entry, hash trees too, as the kernel does to list them. Contents stay
in the image.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fledge.errors import CorruptError, MalformedError, unreadable
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
from fledge.tree import BlockDevice, CharDevice, Directory, Fifo, File, Node, Symlink, Tree
from fledge.tree.budget import XATTR_COST
from fledge.tree.content import Content, DataExtent, Span, Sparse
from fledge.tree.limits import MAX_NAME, MAX_PATH, MAX_XATTR_SIZE, POSIX_ACLS
from fledge.tree.names import printable

ENTRY_COST = 800
"""Bytes of memory that an entry of a directory and its node take."""


class StoredName(NamedTuple):
    """The name of an extended attribute as ext4 keeps it."""

    prefix: int
    """A number of `xattr.PREFIXES`, or one that the kernel does not show."""
    rest: bytes


INLINE_DATA = StoredName(7, b"data")
"""The extended attribute with the rest of a content that begins in the field ``block``."""
INLINE_PARENT = 4
"""Bytes at the beginning of an inline directory with the inode of its parent."""


class InodeFacts(msgspec.Struct, frozen=True):
    """The fields of an inode that its node does not have. Times are nanoseconds since 1970."""

    number: int
    size: int
    """Bytes, as in stat(2). A directory has a size too."""
    links: int
    blocks: int
    """Units of 512 bytes in use, as in stat(2)."""
    flags: int
    """Those of `fledge.ext4.structures.InodeFlag` and more."""
    generation: int
    atime_ns: int
    ctime_ns: int
    crtime_ns: int
    """0 in inodes of 128 bytes, which have no place for it."""


class Image(msgspec.Struct, frozen=True):
    """A filesystem that was read from an image."""

    tree: Tree
    superblock: Superblock
    inodes: dict[Node, InodeFacts]
    """Of every node in the tree."""
    sockets: list[bytes]
    """Paths of sockets. They are not in the tree: without its process a socket means nothing."""


def read(path: Path, only: bytes | None = None) -> Image:
    """The filesystem in the file at ``path``; the contents of files refer to it.

    ``only`` is a path in the image: the tree then has no more than what leads there, symlinks
    and their targets included, and if it is a directory its direct children. Each directory on
    the way is read, but of its entries only the next one on the way is in the tree, and no other
    inode is read. `InodeFacts.links` still counts all links, unlike `Directory.links`. If nothing
    is at ``only``, the tree ends where the way does. None: read everything.

    Raises `CorruptError`, with the inode and its path, if anything that is read is damaged, or
    takes more memory than a `Budget` grants; `FledgeError` if the file cannot be read, if its
    journal has to be replayed first, or if it has features that change the format.
    """
    try:
        with path.open("rb", buffering=0) as file:
            reader = _Reader(Volume(file.fileno(), path), path)
            return reader.read() if only is None else reader.read_only(only)
    except MalformedError as error:
        raise _corrupt(f"{path}: {error}") from error
    except OSError as error:
        raise unreadable(path, error) from error


def _corrupt(message: str) -> CorruptError:
    return CorruptError(message, "Build or copy it again; e2fsck -fn shows all that is damaged.")


class _Folder(NamedTuple):
    """A directory of the image."""

    path: bytes
    """From the root, with a leading slash; that of the root is empty."""
    node: Directory
    number: int
    """Of its inode."""
    parent: int
    """The number of the inode of ``..``."""


class _LazyChildren(dict[bytes, Node]):
    """The children of a directory, each of which is read when `get` first asks for it."""

    def __init__(self, reader: _Reader, folder: _Folder) -> None:
        super().__init__()
        self._reader = reader
        self._folder = folder

    @cached_property
    def _unread(self) -> dict[bytes, int]:
        return self._reader.names(self._folder)

    def get(self, name: bytes, default: Any = None) -> Any:
        """As `dict.get`. Raises `CorruptError` if the child cannot be read."""
        number = self._unread.pop(name, None)
        if number is not None:
            child = self._reader.read_child(self._folder, name, number)
            if isinstance(child, Directory):
                path = self._folder.path + b"/" + name
                folder = _Folder(path, child, number, self._folder.number)
                child.children = _LazyChildren(self._reader, folder)
        return super().get(name, default)

    def read_rest(self) -> None:
        """Read all children that were not asked for, but none of theirs."""
        for name, number in self._unread.items():
            self._reader.read_child(self._folder, name, number)


class _Reader:
    """Makes nodes of inodes, each of them once."""

    def __init__(self, volume: Volume, path: Path) -> None:
        self._volume = volume
        self._path = path
        self._nodes: dict[int, Node | None] = {}
        """By number of inode. None: it is a socket."""
        self._facts: dict[Node, InodeFacts] = {}
        self._sockets: list[bytes] = []
        self._xattr_blocks: dict[int, dict[bytes, bytes]] = {}
        self._values: dict[int, bytes] = {}

    def read(self) -> Image:
        """Everything."""
        root = self._root()
        pending = [root]
        while pending:
            folder = pending.pop()
            for name, number in self.names(folder).items():
                child = self.read_child(folder, name, number)
                if isinstance(child, Directory):
                    path = folder.path + b"/" + name
                    pending.append(_Folder(path, child, number, folder.number))
        return self._image(root.node)

    def read_only(self, path: bytes) -> Image:
        """No more than what leads to ``path``, and the children of the directory there."""
        root = self._root()
        root.node.children = _LazyChildren(self, root)
        image = self._image(root.node)
        # The tree itself looks the path up, so that it leads where it does in the whole tree.
        found = image.tree.get(path, follow=True)
        if isinstance(found, Directory) and isinstance(found.children, _LazyChildren):
            found.children.read_rest()
        for node in self._facts:
            if isinstance(node, Directory):
                node.children = dict(node.children)
        return image

    def names(self, folder: _Folder) -> dict[bytes, int]:
        """The entries of a directory: the numbers of inodes by name, without the two dots."""
        with self._naming(folder.number, folder.path):
            return self._names(folder.number, folder.parent)

    def read_child(self, folder: _Folder, name: bytes, number: int) -> Node | None:
        """Read an entry of a directory into its node's children; None for a socket."""
        path = folder.path + b"/" + name
        with self._naming(number, path):
            if len(path) >= MAX_PATH:
                raise MalformedError(f"its path has more than {MAX_PATH - 1} bytes")
            self._volume.budget.charge(len(path))
            child = self._child(number)
        if child is None:
            self._sockets.append(path[1:])
        else:
            folder.node.children[name] = child
        return child

    def _root(self) -> _Folder:
        with self._naming(ROOT, b""):
            root = self._node(ROOT)
            if not isinstance(root, Directory):
                raise MalformedError("it is not a directory")
        return _Folder(b"", root, ROOT, ROOT)

    def _image(self, root: Directory) -> Image:
        tree = Tree(root.mtime_ns)
        tree.root = root
        return Image(tree, self._volume.superblock, self._facts, self._sockets)

    @contextmanager
    def _naming(self, number: int, path: bytes) -> Iterator[None]:
        """Turn a `MalformedError` into a `CorruptError` that names the inode and its path."""
        try:
            yield
        except MalformedError as error:
            shown = printable(path) or "/"
            raise _corrupt(f"{self._path}: inode {number}, {shown}: {error}") from error

    def _child(self, number: int) -> Node | None:
        """The node of an inode that a directory names; None for a socket."""
        if number not in self._nodes:
            if number < self._volume.superblock.first_ino:
                raise MalformedError("it is reserved and cannot have a name")
            return self._node(number)
        node = self._nodes[number]
        if isinstance(node, Directory):
            raise MalformedError("it is a directory and has another name already")
        return node

    def _node(self, number: int) -> Node | None:
        """The node of an inode that was not read yet, with its facts; None for a socket."""
        inode = self._volume.inode(number)
        if inode.flags & InodeFlag.EA_INODE:
            raise MalformedError("it is the value of an extended attribute and cannot have a name")
        node = self._nodes[number] = self._new_node(number, inode)
        if node is None:
            return None
        node.uid, node.gid, node.mtime_ns = inode.uid, inode.gid, unpack_time(inode.mtime)
        node.xattrs = self._xattrs(inode)
        huge = inode.flags & InodeFlag.HUGE_FILE
        self._facts[node] = InodeFacts(
            number=number,
            size=inode.size,
            links=inode.links,
            blocks=inode.sectors * (self._volume.block_size // SECTOR_SIZE if huge else 1),
            flags=inode.flags,
            generation=inode.generation,
            atime_ns=unpack_time(inode.atime),
            ctime_ns=unpack_time(inode.ctime),
            crtime_ns=unpack_time(inode.crtime),
        )
        return node

    def _new_node(self, number: int, inode: Inode) -> Node | None:
        """A node with mode and content, but no other metadata."""
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
        raise MalformedError(f"its type {file_type:#o} is not known, or it is not in use")

    def _content(self, number: int, inode: Inode) -> Content:
        """The content of a file, which stays in the image if it has blocks of its own."""
        size = inode.size
        if inode.flags & InodeFlag.INLINE_DATA:
            return self._whole(number, inode)
        block_size = self._volume.block_size
        extents = tuple(
            DataExtent(
                offset=offset,
                source=extent.physical * block_size,
                length=min(extent.length * block_size, size - offset),
            )
            for extent in self._volume.extents(number, inode)
            if (offset := extent.logical * block_size) < size
        )
        if size == 0:
            return b""
        if extents and extents[0].length == size:
            return Span(self._path, extents[0].source, size)
        return Sparse(size, self._path, extents)

    def _whole(self, number: int, inode: Inode) -> bytes:
        """The content of an inode in memory."""
        self._volume.budget.charge(inode.size)
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
        if not 0 < inode.size < MAX_PATH:
            raise MalformedError(f"a symlink's target cannot have {inode.size} bytes")
        if inode.size < INODE_BLOCK_SIZE and not inode.flags & InodeFlag.INLINE_DATA:
            target = inode.block[: inode.size]
        else:
            target = self._whole(number, inode)
        if b"\0" in target:
            raise MalformedError("its target contains a NUL")
        return target

    def _names(self, number: int, parent: int) -> dict[bytes, int]:
        """As `names`, of the directory with that inode and that parent."""
        names: dict[bytes, int] = {}
        dots = {b".": number, b"..": parent}
        for part in self._directory_parts(number, parent):
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
                    self._volume.budget.charge(ENTRY_COST)
                    names[name] = child
        return names

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

    def _xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """The extended attributes in the inode and in its block, as the kernel shows them."""
        xattrs = dict(self._xattrs_in_block(inode.file_acl)) if inode.file_acl else {}
        xattrs.update(_shown(self._inside(inode)))
        self._volume.budget.charge(XATTR_COST * len(xattrs))
        return xattrs

    def _inside(self, inode: Inode) -> Iterator[tuple[StoredName, bytes]]:
        """The extended attributes in an inode. Their offsets count from the first entry."""
        header = xattr.INODE_HEADER.pack(xattr.InodeHeader(xattr.MAGIC))
        if inode.xattrs.startswith(header):
            yield from self._stored(inode.xattrs[len(header) :], 0)

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
                self._volume.budget.charge(len(value))
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
        name = xattr.full_name(prefix, rest)
        if name in POSIX_ACLS:
            yield name, xattr.unpack_acl(value)
        elif name is not None:
            yield name, value
