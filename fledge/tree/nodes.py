"""A filesystem tree in memory. Sources fill it; formats write it.

Names and paths are bytes, as in the kernel. The tree never touches the host's filesystem: owners,
device numbers and setuid bits are fields, ``..`` stops at the tree's root, and a loop of symlinks
raises `TreeError`.
"""

from __future__ import annotations

import itertools
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

from fledge.tree.content import Content
from fledge.tree.names import MAX_SHOWN, printable, split_path

MAX_SYMLINKS = 40
"""Maximum symlinks followed while one path is resolved, as in Linux (path_resolution(7))."""

MAX_STEPS = 4096
"""Maximum components followed while one path is resolved, including those in symlinks. No path
within PATH_MAX has more; the limit bounds paths that expand through many long symlinks."""

MAX_SOURCE_STEPS = 1 << 25
"""Maximum components followed for all paths of one image or initramfs: 16 for each of two million
entries. With `MAX_STEPS` alone, hostile paths could keep a build busy for hours."""

NANOSECONDS = 1_000_000_000
"""Nanoseconds in a second."""

TYPE_NAMES = {
    stat.S_IFDIR: "directory",
    stat.S_IFREG: "file",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
}
"""The name of each `Node.file_type` in messages."""


NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})
"""Of all nodes without extended attributes. A dict for each would be a fifth of a tree's memory."""


class TreeError(Exception):
    """A path cannot be resolved or a node cannot be put there.

    The caller turns it into an error that names the layer or file at fault.
    """


# Dataclasses rather than msgspec structs: isinstance() is much slower for a struct when it returns
# False, and the code calls it for every node.
@dataclass(slots=True, kw_only=True, eq=False)
class Node:
    """The fields that all inodes have. A hard link is one node under two names."""

    file_type: ClassVar[int]
    """The S_IFMT bits of inode(7)."""

    mode: int
    """Permission bits with setuid, setgid and sticky: 0 to 0o7777."""
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    """Nanoseconds since 1970-01-01 UTC; negative for earlier times."""
    xattrs: Mapping[bytes, bytes] = field(default_factory=lambda: NO_XATTRS)
    """Extended attributes, by full name (xattr(7))."""
    origin: int = 0
    """The layer or source that added the node, counted from the lowest. It says where a format
    may put the node, and is not stored in artifacts."""


@dataclass(slots=True, kw_only=True, eq=False)
class Directory(Node):
    """A directory and its entries."""

    file_type: ClassVar[int] = stat.S_IFDIR
    children: dict[bytes, Node] = field(default_factory=dict)

    @property
    def links(self) -> int:
        """The link count of stat(2): its name, ``.``, and the ``..`` of each subdirectory."""
        return 2 + sum(isinstance(child, Directory) for child in self.children.values())


@dataclass(slots=True, kw_only=True, eq=False)
class File(Node):
    """A regular file."""

    file_type: ClassVar[int] = stat.S_IFREG
    content: Content


@dataclass(slots=True, kw_only=True, eq=False)
class Symlink(Node):
    """A symbolic link."""

    file_type: ClassVar[int] = stat.S_IFLNK
    mode: int = 0o777
    target: bytes
    """The link's text, exactly as readlink(2) returns it."""


@dataclass(slots=True, kw_only=True, eq=False)
class Device(Node):
    """A device node: a `CharDevice` or a `BlockDevice`."""

    major: int
    minor: int


@dataclass(slots=True, kw_only=True, eq=False)
class CharDevice(Device):
    """A character device."""

    file_type: ClassVar[int] = stat.S_IFCHR


@dataclass(slots=True, kw_only=True, eq=False)
class BlockDevice(Device):
    """A block device."""

    file_type: ClassVar[int] = stat.S_IFBLK


@dataclass(slots=True, kw_only=True, eq=False)
class Fifo(Node):
    """A named pipe."""

    file_type: ClassVar[int] = stat.S_IFIFO


class Tree:
    """A root directory. Paths are resolved as in a chroot into it.

    ``mtime_ns`` is the modification time of the root and of missing parents.
    """

    def __init__(self, mtime_ns: int) -> None:
        self.mtime_ns = mtime_ns
        self.steps = 0
        """Components that all lookups so far have followed, a measure of their cost."""
        self.created = 0
        """Directories that lookups have created because they were missing."""
        self.origin = 0
        """The `Node.origin` of all nodes that are added next. Each layer and source raises it when
        it has added its own."""
        self.root = Directory(mode=0o755, mtime_ns=mtime_ns)

    def add(self, path: bytes, node: Node) -> None:
        """Put a node at ``path`` by the rules for a layer's entry (OCI image-spec, layer.md).

        Symlinks in the parents are followed inside the tree, and missing parents are created.
        The last component is never followed. A directory put over a directory updates its
        metadata and keeps its children; any other node replaces the old one. Raises `TreeError`.
        """
        node.origin = self.origin
        parts = split_path(path)
        if parts:
            put(self.make_directory(parts[:-1]), parts[-1], node)
        elif isinstance(node, Directory):
            _copy_metadata(node, self.root)
        else:
            raise TreeError("the root can only be a directory")

    def get(self, path: bytes, *, follow: bool = False, lexical: bool = False) -> Node | None:
        """Return the node at ``path``, or None. With ``follow``, follow a symlink at its end.

        With ``lexical``, ``..`` in a symlink removes the component before it even if that is
        missing or not a directory, as in containerd and umoci; otherwise there is no such path, as
        in Linux.
        """
        parts = split_path(path)
        try:
            if follow or not parts:
                return self._resolve(parts, lexical=lexical)[1]
            parent = self._resolve(parts[:-1], lexical=lexical)[1]
        except TreeError:
            return None
        return parent.children.get(parts[-1]) if isinstance(parent, Directory) else None

    def locate(self, path: bytes) -> tuple[bytes, Node] | None:
        """Return a node and its absolute path without symlinks; None if there is none.

        As in Linux, and unlike in `get`, a ``..`` in ``path`` is the parent of where a symlink
        before it leads.
        """
        try:
            trail, left = self._follow(path.split(b"/"), lexical=False)
        except TreeError:
            return None
        node = trail[-1].children.get(left[0]) if left else trail[-1]
        if node is None:
            return None
        names = [
            next(name for name, child in parent.children.items() if child is directory)
            for parent, directory in itertools.pairwise(trail)
        ]
        return b"/" + b"/".join([*names, *left]), node

    def real_path(self, path: bytes) -> bytes | None:
        """Return the absolute path, without symlinks, of a node as `locate` finds it."""
        found = self.locate(path)
        return found[0] if found else None

    def make_directory(self, parts: list[bytes]) -> Directory:
        """Return the directory at a path; create it and its parents if they are missing.

        Symlinks are followed as `get` does with ``lexical``. Raises `TreeError` if a node in the
        way is not a directory, or if symlinks loop.
        """
        return self.trail(parts)[-1]

    def trail(self, parts: list[bytes]) -> list[Directory]:
        """Do as `make_directory` does, but return all directories from the root to that one."""
        trail, end = self._resolve(parts, lexical=True, create=True)
        if end is not trail[-1]:
            raise TreeError(f"{_show(parts)} is not a directory")
        return trail

    def check_steps(self, since: int) -> None:
        """Raise `TreeError` if lookups took over `MAX_SOURCE_STEPS` since ``steps`` was ``since``.

        Call it for each entry of an image or initramfs.
        """
        if self.steps - since > MAX_SOURCE_STEPS:
            raise TreeError(f"paths up to here lead through more than {MAX_SOURCE_STEPS} names")

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """Yield every path and node, sorted by component as bytes, parents before children.

        Paths have no leading slash; the root comes first, as ``b""``.
        """
        yield b"", self.root
        # A path is made when it is yielded. Those of all entries that wait would be quadratic.
        prefix = b""
        pending = [(0, _sorted_children(self.root))]
        while pending:
            size, children = pending[-1]
            prefix = prefix[:size]
            for name, node in children:
                path = prefix + name
                yield path, node
                if isinstance(node, Directory) and node.children:
                    prefix = path + b"/"
                    pending.append((len(prefix), _sorted_children(node)))
                    break
            else:
                pending.pop()

    def nodes(self) -> Iterator[Node]:
        """Yield the node of every path, in no order that counts; much faster than `walk`.

        A node with several names comes once for each.
        """
        yield self.root
        pending = [self.root]
        while pending:
            children = pending.pop().children.values()
            yield from children
            pending.extend(child for child in children if isinstance(child, Directory))

    def _resolve(
        self, parts: list[bytes], *, lexical: bool = False, create: bool = False
    ) -> tuple[list[Directory], Node | None]:
        """Follow a path to its end, symlinks included; ``lexical`` is as in `get`.

        With ``create``, which needs ``lexical``, create the directories that are missing in the
        end; not those that a ``..`` removed again.

        Returns the directories from the root on, and the node at the end: the last of these
        directories, another kind of node in it, or None if the path does not exist.
        """
        trail, missing = self._follow(parts, lexical)
        if not missing:
            return trail, trail[-1]
        obstacle = trail[-1].children.get(missing[0])
        if obstacle and len(missing) > 1:
            raise _not_a_directory(missing[0], parts)
        if obstacle or not create:
            return trail, obstacle
        for name in missing:
            child = Directory(mode=0o755, mtime_ns=self.mtime_ns, origin=self.origin)
            trail[-1].children[name] = child
            trail.append(child)
        self.created += len(missing)
        return trail, trail[-1]

    def _follow(self, parts: list[bytes], lexical: bool) -> tuple[list[Directory], list[bytes]]:
        """Follow a path as far as there are directories.

        Returns them, from the root on, and the names that are left. The first of these is missing
        in the last directory, or is neither a directory nor a symlink.
        """
        trail, left = [self.root], list[bytes]()
        pending = parts[::-1]
        links = 0
        steps = len(parts)
        self.steps += steps
        while pending:
            name = pending.pop()
            if name in (b"", b".", b".."):
                if name == b"..":
                    if left:
                        left.pop()
                    elif len(trail) > 1:
                        trail.pop()
                continue
            child = None if left else trail[-1].children.get(name)
            if isinstance(child, Directory):
                trail.append(child)
            elif isinstance(child, Symlink):
                names = child.target.split(b"/")
                links += 1
                steps += len(names)
                self.steps += len(names)
                _check_way(parts, links, steps)
                if child.target.startswith(b"/"):
                    del trail[1:]
                pending.extend(reversed(names))
            else:
                left.append(name)
                if pending and not lexical:
                    if child:
                        raise _not_a_directory(name, parts)
                    return trail, left
        return trail, left


def _sorted_children(directory: Directory) -> Iterator[tuple[bytes, Node]]:
    return iter(sorted(directory.children.items()))


def put(parent: Directory, name: bytes, node: Node) -> Node:
    """Put a node into a directory by the rules of `Tree.add`; return the node that is there now.

    If both are directories, that is the old one with the new metadata.
    """
    if isinstance(node, Directory):
        old = parent.children.get(name)
        if isinstance(old, Directory):
            _copy_metadata(node, old)
            return old
    parent.children[name] = node
    return node


def _copy_metadata(source: Node, target: Node) -> None:
    target.mode, target.uid, target.gid = source.mode, source.uid, source.gid
    target.mtime_ns, target.xattrs = source.mtime_ns, source.xattrs


def _check_way(parts: list[bytes], links: int, steps: int) -> None:
    """Raise `TreeError` if a path leads through too many symlinks or components."""
    if links > MAX_SYMLINKS:
        raise TreeError(f"too many symlinks on the way to {_show(parts)}")
    if steps > MAX_STEPS:
        raise TreeError(f"the way to {_show(parts)} is too long")


def _not_a_directory(name: bytes, parts: list[bytes]) -> TreeError:
    return TreeError(f"{printable(name)} on the way to {_show(parts)} is not a directory")


def _show(parts: list[bytes]) -> str:
    text = printable(b"/" + b"/".join(parts))
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
