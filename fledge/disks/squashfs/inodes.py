"""Writes inodes and the listings of directories.

The inodes of a directory's entries are together, and come before its listing, because that refers
to them. So the directories come in the reverse of the order in which `Tree.walk` finds them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from sys import byteorder
from typing import NamedTuple

from fledge.disks.squashfs.codecs import Compress
from fledge.disks.squashfs.data import StoredFile
from fledge.disks.squashfs.fits import seconds
from fledge.disks.squashfs.metadata import Stream
from fledge.disks.squashfs.structures import (
    DEVICE_INODE,
    DIRECTORY_ENTRY,
    DIRECTORY_HEADER,
    DIRECTORY_INODE,
    EMPTY_LISTING,
    EXTENDED,
    FILE_INODE,
    INDEX_ENTRY,
    INODE_HEADER,
    INODE_TYPES,
    IPC_INODE,
    LARGE_DIRECTORY_INODE,
    LARGE_FILE_INODE,
    MAX_RUN,
    METADATA_SIZE,
    NO_XATTRS,
    SYMLINK_INODE,
    XATTR_NUMBER,
    DeviceInode,
    DirectoryEntry,
    DirectoryHeader,
    DirectoryInode,
    FileInode,
    IndexEntry,
    InodeHeader,
    IpcInode,
    LargeDirectoryInode,
    LargeFileInode,
    SymlinkInode,
    XattrNumber,
)
from fledge.disks.squashfs.xattrs import XattrWriter
from fledge.tree import (
    Device,
    Directory,
    File,
    Node,
    Symlink,
    Tree,
)
from fledge.tree.device_numbers import encode_device

_MAX_BASIC = (1 << 32) - 1
"""The highest number in a basic inode of a file."""
_MAX_BASIC_LISTING = (1 << 16) - 1 - EMPTY_LISTING
"""Maximum bytes in a listing that a basic inode can have."""
_MAX_INDEXES = (1 << 16) - 1


class _Listing(NamedTuple):
    """Where the listing of a directory is."""

    start: int
    offset: int
    size: int
    """In bytes."""
    indexes: list[bytes]
    """The entries of its index."""


class InodeWriter:
    """Writes the inodes of a tree, and the listings of its directories."""

    def __init__(
        self,
        numbers: Mapping[Node, int],
        links: Mapping[Node, int],
        files: Mapping[File, StoredFile],
        compress: Compress,
    ) -> None:
        """``numbers``: of the inodes. ``links``: how many names each node has."""
        self._numbers = numbers
        self._links = links
        self._files = files
        self.stream = Stream(compress)
        """The table of inodes."""
        self.listings = Stream(compress)
        """The table of directories."""
        self.xattrs = XattrWriter(compress)
        self.ids: dict[int, int] = {}
        """The place of each user and group in the list of IDs."""
        self._references: dict[Node, int] = {}
        self._listings: dict[Node, _Listing] = {}

    def write(self, tree: Tree) -> int:
        """Write everything, and return the reference of the root."""
        # The parent of the root has a number that no inode has.
        parents: dict[Node, int] = {tree.root: len(self._numbers) + 1}
        directories = [node for _, node in tree.walk() if isinstance(node, Directory)]
        for directory in directories:
            for child in directory.children.values():
                if isinstance(child, Directory):
                    parents[child] = self._numbers[directory]
        for directory in reversed(directories):
            entries = sorted(directory.children.items())
            for _, child in entries:
                if child not in self._references:
                    self._write_inode(child, parents.get(child, 0))
            self._listings[directory] = self._write_listing(entries)
        self._write_inode(tree.root, parents[tree.root])
        return self._references[tree.root]

    def references(self) -> Iterator[int]:
        """Yield the reference of each inode, by number."""
        return (self._references[node] for node in self._numbers)

    def _write_inode(self, node: Node, parent: int) -> None:
        self._references[node] = self.stream.reference
        xattr = self.xattrs.add(node.xattrs) if node.xattrs else NO_XATTRS
        if isinstance(node, Directory):
            is_basic, body = self._directory_body(node, parent, xattr)
        elif isinstance(node, File):
            is_basic, body = self._file_body(node, xattr)
        else:
            is_basic, body = xattr == NO_XATTRS, self._other_body(node)
            body += b"" if is_basic else XATTR_NUMBER.pack(XattrNumber(xattr))
        header = InodeHeader(
            type=INODE_TYPES[node.file_type] + (0 if is_basic else EXTENDED),
            mode=0o777 if isinstance(node, Symlink) else node.mode,
            uid=self._id(node.uid),
            gid=self._id(node.gid),
            mtime=seconds(node.mtime_ns),
            number=self._numbers[node],
        )
        self.stream.write(INODE_HEADER.pack(header) + body)

    def _id(self, number: int) -> int:
        return self.ids.setdefault(number, len(self.ids))

    def _directory_body(self, node: Directory, parent: int, xattr: int) -> tuple[bool, bytes]:
        listing = self._listings[node]
        size = listing.size + EMPTY_LISTING
        links = node.links
        if listing.size <= _MAX_BASIC_LISTING and not listing.indexes and xattr == NO_XATTRS:
            inode = DirectoryInode(listing.start, links, size, listing.offset, parent)
            return True, DIRECTORY_INODE.pack(inode)
        large = LargeDirectoryInode(
            links=links,
            size=size,
            start=listing.start,
            parent=parent,
            indexes=len(listing.indexes),
            offset=listing.offset,
            xattr=xattr,
        )
        return False, LARGE_DIRECTORY_INODE.pack(large) + b"".join(listing.indexes)

    def _file_body(self, node: File, xattr: int) -> tuple[bool, bytes]:
        stored, links = self._files[node], self._links[node]
        sizes = stored.sizes
        if byteorder == "big":
            sizes = array("I", sizes)
            sizes.byteswap()
        is_small = stored.start <= _MAX_BASIC and stored.size <= _MAX_BASIC and not stored.sparse
        if is_small and links == 1 and xattr == NO_XATTRS:
            inode = FileInode(stored.start, stored.fragment, stored.offset, stored.size)
            return True, FILE_INODE.pack(inode) + sizes.tobytes()
        large = LargeFileInode(
            start=stored.start,
            size=stored.size,
            sparse=stored.sparse,
            links=links,
            fragment=stored.fragment,
            offset=stored.offset,
            xattr=xattr,
        )
        return False, LARGE_FILE_INODE.pack(large) + sizes.tobytes()

    def _other_body(self, node: Node) -> bytes:
        links = self._links[node]
        if isinstance(node, Symlink):
            return SYMLINK_INODE.pack(SymlinkInode(links, len(node.target))) + node.target
        if isinstance(node, Device):
            return DEVICE_INODE.pack(DeviceInode(links, encode_device(node.major, node.minor)))
        return IPC_INODE.pack(IpcInode(links))

    def _write_listing(self, entries: list[tuple[bytes, Node]]) -> _Listing:
        """Write the listing of a directory, in runs.

        The index has the first run that begins after each 8 KiB.
        """
        start, offset = self.listings.start, self.listings.offset
        indexes: list[bytes] = []
        size = indexed = 0
        for run in self._runs(entries):
            first = run[0][0]
            if size - indexed >= METADATA_SIZE and len(indexes) < _MAX_INDEXES:
                index = IndexEntry(size, self.listings.start, len(first) - 1)
                indexes.append(INDEX_ENTRY.pack(index) + first)
                indexed = size
            data = self._run(run)
            self.listings.write(data)
            size += len(data)
        return _Listing(start, offset, size, indexes)

    def _runs(self, entries: list[tuple[bytes, Node]]) -> Iterator[list[tuple[bytes, Node]]]:
        """Cut entries into runs whose inodes begin in one piece and have near numbers."""
        run: list[tuple[bytes, Node]] = []
        for name, node in entries:
            if run:
                first = run[0][1]
                same = self._references[first] >> 16 == self._references[node] >> 16
                near = -0x8000 <= self._numbers[node] - self._numbers[first] < 0x8000
                if len(run) == MAX_RUN or not same or not near:
                    yield run
                    run = []
            run.append((name, node))
        if run:
            yield run

    def _run(self, run: list[tuple[bytes, Node]]) -> bytes:
        number, reference = self._numbers[run[0][1]], self._references[run[0][1]]
        parts = [DIRECTORY_HEADER.pack(DirectoryHeader(len(run) - 1, reference >> 16, number))]
        for name, node in run:
            entry = DirectoryEntry(
                offset=self._references[node] & 0xFFFF,
                delta=self._numbers[node] - number & 0xFFFF,
                type=INODE_TYPES[node.file_type],
                name_size=len(name) - 1,
            )
            parts += DIRECTORY_ENTRY.pack(entry), name
        return b"".join(parts)
