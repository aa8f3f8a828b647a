"""Reads squashfs images, whoever made them, as trees.

Nothing is unpacked before it is needed: metadata piece by piece, contents when they are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fledge.disks.squashfs.structures import (
    NO_FRAGMENT,
    NO_XATTRS,
    InodeType,
    Superblock,
    unpack_device,
)
from fledge.disks.squashfs.volume import Entry, StoredInode, Volume, corrupt
from fledge.errors import MalformedError, unreadable
from fledge.tree import (
    NANOSECONDS,
    BlockDevice,
    CharDevice,
    Directory,
    Fifo,
    File,
    Node,
    Symlink,
    Tree,
)
from fledge.tree.budget import XATTR_COST
from fledge.tree.content import Packed
from fledge.tree.limits import MAX_PATH
from fledge.tree.names import printable


class InodeFacts(msgspec.Struct, frozen=True):
    """The fields of an inode that its node does not have."""

    number: int
    size: int
    """Bytes of a content or target; of a directory, of its listing."""
    links: int
    start: int | None
    """The position of the first block of a file; None: it has none, or is no file."""
    fragment: tuple[int, int] | None
    """The number of the fragment block that has a file's end, and where that is in it, unpacked."""


class Image(msgspec.Struct, frozen=True):
    """A filesystem that was read from an image."""

    tree: Tree
    superblock: Superblock
    inodes: dict[Node, InodeFacts]
    """Of every node in the tree."""
    sockets: list[bytes]
    """Paths of sockets. They are not in the tree: without its process a socket means nothing."""


def read(path: Path, only: bytes | None = None) -> Image:
    """Read the image at ``path``. The contents of files are unpacked from it later.

    ``only`` is a path in the image: the tree then has no more than what leads there, symlinks and
    their targets included, and if it is a directory its direct children. None: read everything.

    Raises `CorruptError`, with the path, if anything that is read is damaged or takes more memory
    than a `Budget` grants; `FledgeError` if the file cannot be read, or is compressed in a way that
    fledge cannot read.
    """
    try:
        reader = _Reader(Volume(path))
        return reader.read() if only is None else reader.read_only(only)
    except MalformedError as error:
        raise corrupt(f"{path}: {error}") from error
    except OSError as error:
        raise unreadable(path, error) from error


class _Folder(NamedTuple):
    """A directory of the image."""

    path: bytes
    """From the root, with a leading slash; that of the root is empty."""
    node: Directory
    inode: StoredInode


class _LazyChildren(dict[bytes, Node]):
    """The children of a directory, each of which is read when `get` first asks for it."""

    def __init__(self, reader: _Reader, folder: _Folder) -> None:
        super().__init__()
        self._reader = reader
        self._folder = folder

    @cached_property
    def _unread(self) -> dict[bytes, Entry]:
        return self._reader.entries(self._folder)

    def get(self, name: bytes, default: Any = None) -> Any:
        """As `dict.get`. Raises `CorruptError` if the child cannot be read."""
        entry = self._unread.pop(name, None)
        if entry is not None:
            found = self._reader.read_child(self._folder, name, entry)
            if found:
                found.node.children = _LazyChildren(self._reader, found)
        return super().get(name, default)

    def read_rest(self) -> None:
        """Read all children that were not asked for, but none of theirs."""
        for name, entry in self._unread.items():
            self._reader.read_child(self._folder, name, entry)


class _Reader:
    """Makes nodes of inodes, each of them once."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._nodes: dict[int, Node | None] = {}
        """By reference. None: it is a socket."""
        self._facts: dict[Node, InodeFacts] = {}
        self._sockets: list[bytes] = []

    def read(self) -> Image:
        """Read everything."""
        root = self._root()
        pending = [root]
        while pending:
            folder = pending.pop()
            for name, entry in self.entries(folder).items():
                if found := self.read_child(folder, name, entry):
                    pending.append(found)
        return self._image(root.node)

    def read_only(self, path: bytes) -> Image:
        """Read no more than what leads to ``path``, and the children of the directory there."""
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

    def entries(self, folder: _Folder) -> dict[bytes, Entry]:
        """Read the listing of a directory."""
        with self._naming(folder.path):
            return self._volume.entries(folder.inode)

    def read_child(self, folder: _Folder, name: bytes, entry: Entry) -> _Folder | None:
        """Read an entry into its directory's children. Returns it if it is a directory itself."""
        path = folder.path + b"/" + name
        with self._naming(path):
            if len(path) > MAX_PATH:
                raise MalformedError(f"its path has more than {MAX_PATH - 1} bytes")
            self._volume.budget.charge(len(path))
            if entry.reference in self._nodes:
                child = self._nodes[entry.reference]
                if isinstance(child, Directory):
                    raise MalformedError("it is a directory and has another name already")
                inode = None
            else:
                inode = self._volume.inode(entry.reference)
                if inode.type != entry.type:
                    raise MalformedError(f"its type is {inode.type}, and {entry.type} by its name")
                child = self._node(entry.reference, inode)
        if child is None:
            self._sockets.append(path[1:])
            return None
        folder.node.children[name] = child
        return _Folder(path, child, inode) if isinstance(child, Directory) and inode else None

    def _root(self) -> _Folder:
        reference = self._volume.superblock.root_inode
        with self._naming(b""):
            inode = self._volume.inode(reference)
            root = self._node(reference, inode)
            if not isinstance(root, Directory):
                raise MalformedError("it is not a directory")
        return _Folder(b"", root, inode)

    def _image(self, root: Directory) -> Image:
        superblock = self._volume.superblock
        tree = Tree(superblock.mkfs_time * NANOSECONDS)
        tree.root = root
        return Image(tree, superblock, self._facts, self._sockets)

    @contextmanager
    def _naming(self, path: bytes) -> Iterator[None]:
        """Turn a `MalformedError` into a `CorruptError` that names the path."""
        try:
            yield
        except MalformedError as error:
            raise corrupt(f"{self._volume.path}: {printable(path) or '/'}: {error}") from error

    def _node(self, reference: int, inode: StoredInode) -> Node | None:
        """Make the node of an inode, with its facts; None for a socket."""
        node = self._nodes[reference] = self._new_node(inode)
        if node is None:
            return None
        header = inode.header
        node.mode = header.mode & 0o7777
        node.uid, node.gid = self._volume.id(header.uid), self._volume.id(header.gid)
        node.mtime_ns = header.mtime * NANOSECONDS
        if inode.xattr != NO_XATTRS:
            node.xattrs = dict(self._volume.xattrs(inode.xattr))
            self._volume.budget.charge(XATTR_COST * len(node.xattrs))
        has_fragment = inode.type is InodeType.FILE and inode.fragment != NO_FRAGMENT
        self._facts[node] = InodeFacts(
            number=header.number,
            size=inode.size,
            links=inode.links,
            start=inode.start if inode.sizes else None,
            fragment=(inode.fragment, inode.offset) if has_fragment else None,
        )
        return node

    def _new_node(self, inode: StoredInode) -> Node | None:
        """Make a node without the metadata that all types have."""
        if inode.type is InodeType.DIRECTORY:
            return Directory(mode=0)
        if inode.type is InodeType.FILE:
            unpack = partial(self._unpack, inode)
            content = Packed(inode.size, self._volume.path, unpack) if inode.size else b""
            return File(mode=0, content=content)
        if inode.type is InodeType.SYMLINK:
            if b"\0" in inode.target:
                raise MalformedError("its target contains a NUL")
            return Symlink(target=inode.target)
        if inode.type is InodeType.FIFO:
            return Fifo(mode=0)
        if inode.type is InodeType.SOCKET:
            return None
        kind = CharDevice if inode.type is InodeType.CHAR_DEVICE else BlockDevice
        major, minor = unpack_device(inode.device)
        return kind(mode=0, major=major, minor=minor)

    def _unpack(self, inode: StoredInode, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Yield the data of a file as `Packed.unpack` does."""
        volume = self._volume
        try:
            yield from volume.unpack(inode, begin, end)
        except MalformedError as error:
            raise corrupt(f"{volume.path}: inode {inode.header.number}: {error}") from error
        except OSError as error:
            raise unreadable(volume.path, error) from error
