"""Reads a filesystem of inodes as a tree: from its root on, each inode once.

A format that stores inodes implements `Filesystem`, and `read_image` does the rest.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from fledge.errors import CorruptError, MalformedError, unreadable
from fledge.tree.budget import Budget
from fledge.tree.content import Content
from fledge.tree.limits import MAX_PATH
from fledge.tree.names import printable
from fledge.tree.nodes import (
    BlockDevice,
    CharDevice,
    Directory,
    Fifo,
    File,
    Node,
    Symlink,
    Tree,
)

ENTRY_COST = 800
"""Bytes of memory that an entry of a directory and its node take."""


class InodeFacts(msgspec.Struct, frozen=True):
    """The fields of an inode that every filesystem has, and its node does not."""

    number: int
    """As in stat(2)."""
    size: int
    """Bytes, as in stat(2). A directory has a size too."""
    links: int


Superblock = TypeVar("Superblock")
Superblock_co = TypeVar("Superblock_co", covariant=True)
Facts = TypeVar("Facts", bound=InodeFacts)
Facts_co = TypeVar("Facts_co", bound=InodeFacts, covariant=True)
Key = TypeVar("Key", bound=Hashable)


class Image(msgspec.Struct, Generic[Superblock, Facts], frozen=True):
    """A filesystem that was read from an image."""

    tree: Tree
    superblock: Superblock
    inodes: dict[Node, Facts]
    """Of every node in the tree."""
    sockets: list[bytes]
    """Paths of sockets. They are not in the tree: without its process a socket means nothing."""


class Filesystem(Protocol[Superblock_co, Key, Facts_co]):
    """What a format has to know about an open image. A key is what a directory names an inode by.

    Its methods raise `MalformedError`.
    """

    @property
    def path(self) -> Path:
        """The image, for messages."""

    @property
    def hint(self) -> str:
        """What to do about a damaged image."""

    @property
    def superblock(self) -> Superblock_co:
        """The superblock."""

    @property
    def budget(self) -> Budget:
        """Bounds the memory. The format charges it for names (`ENTRY_COST`) and metadata."""

    @property
    def root(self) -> Key:
        """The inode of the root."""

    def describe(self, key: Key) -> str:
        """Return what messages call an inode."""

    def node(self, key: Key, path: bytes) -> tuple[Node, Facts_co] | None:
        """Read an inode for the first time. None: it is a socket.

        ``path`` is its first path with a leading slash, for messages of contents that are read
        later. The node of a directory has no children.
        """

    def names(self, key: Key, parent: Key) -> dict[bytes, Key]:
        """Read a directory: its entries by name, without the two dots.

        The walk asks once for each directory, after `node`. ``parent`` is what ``..`` has to name.
        """


def read_image(
    filesystem: Filesystem[Superblock, Key, Facts], only: bytes | None
) -> Image[Superblock, Facts]:
    """Read the inodes of an image as a tree.

    ``only`` is a path in the image: the tree then has no more than what leads there, symlinks
    and their targets included, and if it is a directory its direct children. Each directory on
    the way is read, but of its entries only the next one on the way is in the tree, and no other
    inode is read. `InodeFacts.links` still counts all links, unlike `Directory.links`. If nothing
    is at ``only``, the tree ends where the way does. None: read everything.

    Raises `CorruptError`, with the inode and its path, if anything that is read is damaged, or
    takes more memory than the budget grants; `OSError`.
    """
    walk = _Walk(filesystem)
    root = walk.root()
    tree = Tree(root.node.mtime_ns)
    tree.root = root.node
    if only is None:
        walk.read_below(root)
    else:
        walk.read_only(only, root, tree)
    return Image(tree, filesystem.superblock, walk.facts, walk.sockets)


@contextmanager
def explained(path: Path, hint: str, place: str = "") -> Iterator[None]:
    """Turn failures to read an image in the context into errors that name it.

    A `MalformedError` becomes a `CorruptError` with the hint; ``place`` is where in the image it
    is, if that is known. An `OSError` becomes a `FledgeError`.
    """
    try:
        yield
    except MalformedError as error:
        where = f"{path}: {place}" if place else path
        raise CorruptError(f"{where}: {error}", hint) from error
    except OSError as error:
        raise unreadable(path, error) from error


def new_node(
    mode: int,
    content: Callable[[], Content],
    target: Callable[[], bytes],
    device: Callable[[], tuple[int, int]],
) -> Node | None:
    """Make a node of the type in ``mode`` (inode(7)), with mode and content. None: a socket.

    Of the functions, which return a file's content, a symlink's target, and the major and minor
    number of a device, only the one that the type needs is called. Raises `MalformedError`.
    """
    permissions, file_type = stat.S_IMODE(mode), stat.S_IFMT(mode)
    if file_type == stat.S_IFDIR:
        return Directory(mode=permissions)
    if file_type == stat.S_IFREG:
        return File(mode=permissions, content=content())
    if file_type == stat.S_IFLNK:
        found = target()
        if b"\0" in found:
            raise MalformedError("its target contains a NUL")
        return Symlink(mode=permissions, target=found)
    if file_type in (stat.S_IFCHR, stat.S_IFBLK):
        kind = CharDevice if file_type == stat.S_IFCHR else BlockDevice
        major, minor = device()
        return kind(mode=permissions, major=major, minor=minor)
    if file_type == stat.S_IFIFO:
        return Fifo(mode=permissions)
    if file_type == stat.S_IFSOCK:
        return None
    raise MalformedError(f"its type {file_type:#o} is not known, or it is not in use")


def check_target_size(size: int) -> None:
    """Raise `MalformedError` if no symlink can have a target of ``size`` bytes."""
    if not 0 < size < MAX_PATH:
        raise MalformedError(f"a symlink's target cannot have {size} bytes")


class _Folder(msgspec.Struct, Generic[Key], frozen=True):
    """A directory of the image."""

    path: bytes
    """From the root, with a leading slash; that of the root is empty."""
    node: Directory
    key: Key
    parent: Key


class _LazyChildren(dict[bytes, Node], Generic[Key]):
    """The children of a directory, each of which is read when `get` first asks for it."""

    def __init__(self, walk: _Walk[Key, Any], folder: _Folder[Key]) -> None:
        super().__init__()
        self._walk = walk
        self._folder = folder

    @cached_property
    def _unread(self) -> dict[bytes, Key]:
        return self._walk.names(self._folder)

    def get(self, name: bytes, default: Any = None) -> Any:
        """As `dict.get`. Raises `CorruptError` if the child cannot be read."""
        key = self._unread.pop(name, None)
        if key is not None:
            found = self._walk.read_child(self._folder, name, key)
            if found:
                found.node.children = _LazyChildren(self._walk, found)
        return super().get(name, default)

    def read_rest(self) -> None:
        """Read all children that were not asked for, but none of theirs."""
        for name, key in self._unread.items():
            self._walk.read_child(self._folder, name, key)


class _Walk(Generic[Key, Facts]):
    """Makes nodes of inodes, each of them once."""

    def __init__(self, filesystem: Filesystem[Any, Key, Facts]) -> None:
        self._filesystem = filesystem
        self._nodes: dict[Key, Node | None] = {}
        """None: it is a socket."""
        self.facts: dict[Node, Facts] = {}
        self.sockets: list[bytes] = []

    def root(self) -> _Folder[Key]:
        """Read the inode of the root."""
        key = self._filesystem.root
        try:
            node = self._read(key, b"")
            if not isinstance(node, Directory):
                raise MalformedError("it is not a directory")
        except MalformedError as error:
            raise self._corrupt(key, b"", error) from error
        return _Folder(b"", node, key, key)

    def read_below(self, root: _Folder[Key]) -> None:
        """Read everything below the root."""
        pending = [root]
        while pending:
            folder = pending.pop()
            for name, key in self.names(folder).items():
                if found := self.read_child(folder, name, key):
                    pending.append(found)

    def read_only(self, path: bytes, root: _Folder[Key], tree: Tree) -> None:
        """Read no more than what leads to ``path``, and the children of the directory there."""
        root.node.children = _LazyChildren(self, root)
        # The tree itself looks the path up, so that it leads where it does in the whole tree.
        found = tree.get(path, follow=True)
        if isinstance(found, Directory) and isinstance(found.children, _LazyChildren):
            found.children.read_rest()
        for node in self.facts:
            if isinstance(node, Directory):
                node.children = dict(node.children)

    def names(self, folder: _Folder[Key]) -> dict[bytes, Key]:
        """Read the entries of a directory."""
        try:
            return self._filesystem.names(folder.key, folder.parent)
        except MalformedError as error:
            raise self._corrupt(folder.key, folder.path, error) from error

    def read_child(self, folder: _Folder[Key], name: bytes, key: Key) -> _Folder[Key] | None:
        """Read an entry into its directory's children. Returns it if it is a directory itself."""
        path = folder.path + b"/" + name
        try:
            if len(path) > MAX_PATH:
                raise MalformedError(f"its path has more than {MAX_PATH - 1} bytes")
            self._filesystem.budget.charge(len(path))
            child = self._read(key, path)
        except MalformedError as error:
            raise self._corrupt(key, path, error) from error
        if child is None:
            self.sockets.append(path[1:])
            return None
        folder.node.children[name] = child
        return _Folder(path, child, key, folder.key) if isinstance(child, Directory) else None

    def _read(self, key: Key, path: bytes) -> Node | None:
        """Return the node of an inode. Raises `MalformedError`."""
        if key in self._nodes:
            node = self._nodes[key]
            if isinstance(node, Directory):
                raise MalformedError("it is a directory and has another name already")
            return node
        found = self._filesystem.node(key, path)
        if found is None:
            self._nodes[key] = None
            return None
        node, facts = found
        self._nodes[key] = node
        self.facts[node] = facts
        return node

    def _corrupt(self, key: Key, path: bytes, error: MalformedError) -> CorruptError:
        filesystem = self._filesystem
        place = f"{filesystem.describe(key)}, {printable(path) or '/'}"
        return CorruptError(f"{filesystem.path}: {place}: {error}", filesystem.hint)
