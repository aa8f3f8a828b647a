"""Reads erofs images, whoever made them, as trees. Contents stay in the image unless compressed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from fledge.disks.erofs import directory
from fledge.disks.erofs.structures import Superblock, unpack_device
from fledge.disks.erofs.unpack import unpack
from fledge.disks.erofs.volume import StoredInode, Volume
from fledge.errors import CorruptError, FledgeError, MalformedError, reason, unreadable
from fledge.tree import BlockDevice, CharDevice, Directory, Fifo, File, Node, Symlink, Tree
from fledge.tree.budget import xattrs_cost
from fledge.tree.content import OpenFile
from fledge.tree.limits import MAX_PATH
from fledge.tree.names import printable

ENTRY_COST = 800
"""Bytes of memory that an entry of a directory and its node take."""


class InodeFacts(msgspec.Struct, frozen=True):
    """The fields of an inode that its node does not have."""

    nid: int
    """What stat(2) calls the inode number."""
    size: int
    """Bytes, as in stat(2). A directory has a size too."""
    links: int
    layout: int
    """A `DataLayout`."""
    is_extended: bool
    number: int
    """The inode number for programs that take 32 bits."""


class Image(msgspec.Struct, frozen=True):
    """A filesystem that was read from an image."""

    tree: Tree
    superblock: Superblock
    inodes: dict[Node, InodeFacts]
    """Of every node in the tree."""
    sockets: list[bytes]
    """Paths of sockets. They are not in the tree: without its process a socket means nothing."""


def read(path: Path, folder: Path, only: bytes | None = None) -> Image:
    """Read the filesystem at ``path``. Compressed files are unpacked into a file in ``folder``.

    ``only`` is a path in the image. Of the compressed files, only the one there and those in the
    directory there are then unpacked, and the tree lacks the others. None: read everything.

    Raises `CorruptError`, with the nid and its path, if anything that is read is damaged, or takes
    more memory than a `Budget` grants; `FledgeError` if the file cannot be read or has features
    that change the format.
    """
    try:
        opened = OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        reader = _Reader(Volume(opened, path), path)
        image = reader.read()
    except MalformedError as error:
        raise _corrupt(f"{path}: {error}") from error
    except OSError as error:
        raise unreadable(path, error) from error
    reader.unpack(folder, only)
    return image


def _corrupt(message: str) -> CorruptError:
    return CorruptError(message, "Build or copy it again; fsck.erofs shows what is damaged.")


class _Folder(NamedTuple):
    """A directory of the image."""

    path: bytes
    """From the root, with a leading slash; that of the root is empty."""
    node: Directory
    stored: StoredInode
    parent: int
    """The nid of the inode of ``..``."""


class _Packed(NamedTuple):
    """A compressed file."""

    stored: StoredInode
    path: bytes
    """Its first path."""


class _Reader:
    """Makes nodes of inodes, each of them once."""

    def __init__(self, volume: Volume, path: Path) -> None:
        self._volume = volume
        self._path = path
        self._nodes: dict[int, Node | None] = {}
        """By nid. None: it is a socket."""
        self._facts: dict[Node, InodeFacts] = {}
        self._sockets: list[bytes] = []
        self._packed: dict[Node, _Packed] = {}
        self._tree = Tree(0)

    def read(self) -> Image:
        """Read everything but the contents of compressed files."""
        nid = self._volume.superblock.root_nid
        with self._naming(nid, b""):
            stored = self._volume.inode(nid)
            root = self._node(stored, b"")
            if not isinstance(root, Directory):
                raise MalformedError("it is not a directory")
        self._tree = Tree(root.mtime_ns)
        self._tree.root = root
        pending = [_Folder(b"", root, stored, nid)]
        while pending:
            folder = pending.pop()
            with self._naming(folder.stored.nid, folder.path):
                names = self._names(folder)
            for name, number in names.items():
                pending.extend(self._read_child(folder, name, number))
        return Image(self._tree, self._volume.superblock, self._facts, self._sockets)

    def unpack(self, folder: Path, only: bytes | None) -> None:
        """Decompress files; ``only`` is as in `read`. Raises as `read`."""
        wanted = set(self._packed)
        if only is not None:
            found = self._tree.get(only, follow=True)
            below = found.children.values() if isinstance(found, Directory) else ()
            wanted &= {found, *below} - {None}
        unpacked = folder / "unpacked.erofs"
        try:
            with unpacked.open("w+b") as output:
                for node, (stored, path) in self._packed.items():
                    if node in wanted and isinstance(node, File):
                        with self._naming(stored.nid, path):
                            node.content = unpack(self._volume, stored, output, unpacked)
        except OSError as error:
            raise FledgeError(
                f"{self._path} could not be read: {reason(error)}",
                f"Compressed files are unpacked in {folder}; TMPDIR chooses another folder.",
            ) from error
        self._remove(self._packed.keys() - wanted)

    def _remove(self, nodes: set[Node]) -> None:
        """Remove nodes whose contents are not known."""
        for directory_ in [each for each in self._facts if isinstance(each, Directory)]:
            if not nodes.isdisjoint(directory_.children.values()):
                for name, node in list(directory_.children.items()):
                    if node in nodes:
                        del directory_.children[name]
        for node in nodes:
            del self._facts[node]

    @contextmanager
    def _naming(self, nid: int, path: bytes) -> Iterator[None]:
        """Turn a `MalformedError` into a `CorruptError` that names the inode and its path."""
        try:
            yield
        except MalformedError as error:
            shown = printable(path) or "/"
            raise _corrupt(f"{self._path}: nid {nid}, {shown}: {error}") from error

    def _names(self, folder: _Folder) -> dict[bytes, int]:
        """The entries of a directory: nids by name, without the two dots."""
        names: dict[bytes, int] = {}
        dots = {b".": folder.stored.nid, b"..": folder.parent}
        last = b""
        for block in self._volume.blocks(self._volume.content(folder.stored)):
            for name, nid in directory.unpack(block):
                # The kernel searches for names, and finds only those that are in order.
                if name <= last:
                    raise MalformedError(f"its name {printable(name)} is out of order")
                last = name
                if name not in dots:
                    self._volume.budget.charge(ENTRY_COST)
                    names[name] = nid
                elif nid != dots[name]:
                    raise MalformedError(f"its {name.decode()} is nid {nid}, not {dots[name]}")
        return names

    def _read_child(self, folder: _Folder, name: bytes, nid: int) -> Iterator[_Folder]:
        """Read an entry of a directory into its node's children. Yield it if it is a directory."""
        path = folder.path + b"/" + name
        with self._naming(nid, path):
            if len(path) >= MAX_PATH:
                raise MalformedError(f"its path has more than {MAX_PATH - 1} bytes")
            self._volume.budget.charge(len(path))
            if nid in self._nodes:
                child = self._nodes[nid]
                if isinstance(child, Directory):
                    raise MalformedError("it is a directory and has another name already")
            else:
                stored = self._volume.inode(nid)
                child = self._node(stored, path)
                if isinstance(child, Directory):
                    yield _Folder(path, child, stored, folder.stored.nid)
        if child is None:
            self._sockets.append(path[1:])
        else:
            folder.node.children[name] = child

    def _node(self, stored: StoredInode, path: bytes) -> Node | None:
        """The node of an inode that was not read yet, with its facts; None for a socket."""
        inode = stored.inode
        node = self._nodes[stored.nid] = self._new_node(stored)
        if node is None:
            return None
        if stored.is_compressed:
            if not isinstance(node, File):
                raise MalformedError("only files can be compressed")
            self._packed[node] = _Packed(stored, path)
        node.uid, node.gid, node.mtime_ns = inode.uid, inode.gid, stored.mtime_ns
        for name, value in self._volume.xattrs(stored):
            if name in node.xattrs:
                raise MalformedError(f"it has two extended attributes {printable(name)}")
            node.xattrs[name] = value
        self._volume.budget.charge(xattrs_cost(node.xattrs))
        self._facts[node] = InodeFacts(
            nid=stored.nid,
            size=inode.size,
            links=inode.links,
            layout=inode.layout,
            is_extended=bool(inode.format & 1),
            number=inode.number,
        )
        return node

    def _new_node(self, stored: StoredInode) -> Node | None:
        """A node with mode and content, but no other metadata."""
        inode = stored.inode
        mode, file_type = stat.S_IMODE(inode.mode), stat.S_IFMT(inode.mode)
        if file_type == stat.S_IFDIR:
            return Directory(mode=mode)
        if file_type == stat.S_IFREG:
            content = b"" if stored.is_compressed else self._volume.content(stored)
            return File(mode=mode, content=content)
        if file_type == stat.S_IFLNK:
            return Symlink(mode=mode, target=self._target(stored))
        if file_type in (stat.S_IFCHR, stat.S_IFBLK):
            kind = CharDevice if file_type == stat.S_IFCHR else BlockDevice
            major, minor = unpack_device(inode.union)
            return kind(mode=mode, major=major, minor=minor)
        if file_type == stat.S_IFIFO:
            return Fifo(mode=mode)
        if file_type == stat.S_IFSOCK:
            return None
        raise MalformedError(f"its type {file_type:#o} is not known")

    def _target(self, stored: StoredInode) -> bytes:
        size = stored.inode.size
        if not 0 < size < MAX_PATH or stored.is_compressed:
            raise MalformedError(f"a symlink's target cannot have {size} bytes")
        target = b"".join(self._volume.blocks(self._volume.content(stored)))
        if b"\0" in target:
            raise MalformedError("its target contains a NUL")
        return target
