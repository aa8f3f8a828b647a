"""A filesystem held in memory: what every source becomes and every artifact is written from.

Names and paths are bytes, as in the kernel. Nothing here touches the host's filesystem: an
owner, a device or a setuid bit is a field, and a path that climbs or loops ends in the tree
or in a `TreeError`.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from fledge.tree.content import Content
from fledge.tree.names import MAX_SHOWN, printable, split_path

MAX_SYMLINKS = 40
"""How many symlinks one path may go through, as in Linux (path_resolution(7))."""

MAX_STEPS = 4096
"""How many names one path may lead through, those in symlinks included: no longer path fits
into PATH_MAX, and without a bound 40 symlinks could make a lookup cost 80,000 steps."""

MAX_SOURCE_STEPS = 1 << 25
"""How many names all paths of a layer or an initramfs may lead through, 16 for each of two million
entries. That takes ten seconds or so; `MAX_STEPS` alone would let one cost hours."""

MADE_COST = 16
"""What a directory that a lookup had to make counts of `Tree.steps`, for it stays in memory."""

NANOSECONDS = 1_000_000_000
"""In a second."""

TYPE_NAMES = {
    stat.S_IFDIR: "directory",
    stat.S_IFREG: "file",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
}
"""What people call each `Node.file_type`."""


class TreeError(Exception):
    """A path cannot be what it is asked to be. The caller knows whose fault that is."""


# Dataclasses, for isinstance() of a msgspec.Struct takes five times as long where it is false,
# and nodes are told apart by it all the time.
@dataclass(slots=True, kw_only=True, eq=False)
class Node:
    """What all inodes have. A hard link is one node under two names."""

    file_type: ClassVar[int]
    """The S_IFMT bits of inode(7)."""

    mode: int
    """Permission bits with setuid, setgid and sticky: 0 to 0o7777."""
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    """Nanoseconds since 1970, negative before."""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True, eq=False)
class Directory(Node):
    file_type: ClassVar[int] = stat.S_IFDIR
    children: dict[bytes, Node] = field(default_factory=dict)

    @property
    def links(self) -> int:
        """As stat(2) counts them: by its name, ``.``, and the ``..`` of each directory in it."""
        return 2 + sum(isinstance(child, Directory) for child in self.children.values())


@dataclass(slots=True, kw_only=True, eq=False)
class File(Node):
    file_type: ClassVar[int] = stat.S_IFREG
    content: Content


@dataclass(slots=True, kw_only=True, eq=False)
class Symlink(Node):
    file_type: ClassVar[int] = stat.S_IFLNK
    mode: int = 0o777
    target: bytes


@dataclass(slots=True, kw_only=True, eq=False)
class Device(Node):
    major: int
    minor: int


@dataclass(slots=True, kw_only=True, eq=False)
class CharDevice(Device):
    file_type: ClassVar[int] = stat.S_IFCHR


@dataclass(slots=True, kw_only=True, eq=False)
class BlockDevice(Device):
    file_type: ClassVar[int] = stat.S_IFBLK


@dataclass(slots=True, kw_only=True, eq=False)
class Fifo(Node):
    file_type: ClassVar[int] = stat.S_IFIFO


class Tree:
    """A root directory and the path rules of a chroot into it.

    ``mtime_ns`` is the time of the root and of parents that nothing else describes.
    """

    def __init__(self, mtime_ns: int) -> None:
        self.mtime_ns = mtime_ns
        self.steps = 0
        """How many names all lookups so far had to go through: what they cost."""
        self.root = Directory(mode=0o755, mtime_ns=mtime_ns)

    def add(self, path: bytes, node: Node) -> None:
        """Put a node at ``path`` as a tar entry is applied (OCI image-spec, layer.md).

        Symlinks in the parents are followed inside the tree, missing parents are made. The
        last component is never followed: a directory over a directory gives it its metadata
        and keeps the children; anything else replaces what is there. Raises `TreeError`.
        """
        parts = split_path(path)
        if parts:
            put(self.make_directory(parts[:-1]), parts[-1], node)
        elif isinstance(node, Directory):
            _copy_metadata(node, self.root)
        else:
            raise TreeError("the root can only be a directory")

    def get(self, path: bytes, *, follow: bool = False) -> Node | None:
        """The node at ``path``, or None. ``follow``: also through a symlink at its end."""
        parts = split_path(path)
        try:
            return self._resolve(parts, create=False)[1] if follow else self._child(parts)
        except TreeError:
            return None

    def make_directory(self, parts: list[bytes]) -> Directory:
        """The directory that a path leads to, made with its parents where it is missing.

        Raises `TreeError` if a file is in the way or symlinks loop.
        """
        return self.trail(parts)[-1]

    def trail(self, parts: list[bytes]) -> list[Directory]:
        """The directories from the root to the one that `make_directory` gives, both included."""
        trail, end = self._resolve(parts, create=True)
        if end is not trail[-1]:
            raise TreeError(f"{_show(parts)} is not a directory")
        return trail

    def check_steps(self, since: int) -> None:
        """Raise `TreeError` if lookups cost more than a source may since ``steps`` was that."""
        if self.steps - since > MAX_SOURCE_STEPS:
            raise TreeError(f"paths up to here lead through more than {MAX_SOURCE_STEPS} names")

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """Every path and node, sorted by component as bytes, parents before children.

        Paths have no leading slash; the root comes first, as ``b""``.
        """
        pending: list[tuple[bytes, Node]] = [(b"", self.root)]
        while pending:
            path, node = pending.pop()
            yield path, node
            if isinstance(node, Directory):
                prefix = path + b"/" if path else b""
                pending.extend(
                    (prefix + name, node.children[name])
                    for name in sorted(node.children, reverse=True)
                )

    def _child(self, parts: list[bytes]) -> Node | None:
        if not parts:
            return self.root
        parent = self._resolve(parts[:-1], create=False)[1]
        return parent.children.get(parts[-1]) if isinstance(parent, Directory) else None

    def _resolve(self, parts: list[bytes], *, create: bool) -> tuple[list[Directory], Node | None]:
        """Follow a path to its end, symlinks included; ``create`` makes what is missing.

        Returns the directories on the way, and what is at the end: the last of them, a node
        of another kind in it, or None.
        """
        trail = [self.root]
        pending = parts[::-1]
        links = 0
        steps = len(parts)
        self.steps += steps
        while pending:
            if steps > MAX_STEPS:
                raise TreeError(f"the way to {_show(parts)} is too long")
            name = pending.pop()
            if name in (b"", b".", b".."):
                if name == b".." and len(trail) > 1:
                    trail.pop()
                continue
            child = trail[-1].children.get(name)
            if child is None:
                if not create:
                    return trail, None
                child = Directory(mode=0o755, mtime_ns=self.mtime_ns)
                trail[-1].children[name] = child
                self.steps += MADE_COST
            if isinstance(child, Symlink):
                links += 1
                if links > MAX_SYMLINKS:
                    raise TreeError(f"too many symlinks on the way to {_show(parts)}")
                if child.target.startswith(b"/"):
                    del trail[1:]
                names = child.target.split(b"/")
                pending.extend(reversed(names))
                steps += len(names)
                self.steps += len(names)
            elif isinstance(child, Directory):
                trail.append(child)
            elif pending:
                raise TreeError(f"{printable(name)} on the way to {_show(parts)} is no directory")
            else:
                return trail, child
        return trail, trail[-1]


def put(parent: Directory, name: bytes, node: Node) -> Node:
    """Put a node into a directory under a name, by the rules of `Tree.add`; returns what is there.

    Of two directories that is the old one.
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


def _show(parts: list[bytes]) -> str:
    text = printable(b"/" + b"/".join(parts))
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
