"""Reads the parts of an image: superblock, inodes, listings, extended attributes, contents.

Everything in an image may be a lie. What is read has a bound, or is charged to a `Budget`.
"""

from __future__ import annotations

import os
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from sys import byteorder
from typing import NamedTuple

from fledge.disks.squashfs import structures
from fledge.disks.squashfs.codecs import decompressor
from fledge.disks.squashfs.constants import MAGIC, SUPERBLOCK_SIZE
from fledge.disks.squashfs.metadata import Cursor, Metadata
from fledge.disks.squashfs.structures import (
    DATA_PLAIN,
    DEVICE_INODE,
    DIRECTORY_ENTRY,
    DIRECTORY_HEADER,
    DIRECTORY_INODE,
    EMPTY_LISTING,
    EXTENDED,
    FILE_INODE,
    FRAGMENT_ENTRY,
    ID,
    INODE_HEADER,
    IPC_INODE,
    LARGE_DIRECTORY_INODE,
    LARGE_FILE_INODE,
    MAX_RUN,
    NO_FRAGMENT,
    NO_XATTRS,
    NONE,
    REFERENCE,
    SUPERBLOCK,
    SYMLINK_INODE,
    VALUE_ELSEWHERE,
    XATTR_ENTRY,
    XATTR_HEADER,
    XATTR_NAME,
    XATTR_NUMBER,
    XATTR_PREFIXES,
    XATTR_VALUE,
    Codec,
    InodeHeader,
    InodeType,
    Superblock,
)
from fledge.errors import FledgeError, MalformedError
from fledge.report import human_size
from fledge.tree.budget import XATTR_COST, Budget
from fledge.tree.compression import MAX_DECOMPRESSED_SIZE
from fledge.tree.content import OpenFile
from fledge.tree.inodes import ENTRY_COST, check_target_size, explained
from fledge.tree.limits import MAX_NAME, MAX_XATTR_SIZE
from fledge.tree.names import printable

HINT = "Build or copy it again."
"""What to do about a damaged image."""
CACHED_FRAGMENTS = 8
"""Fragment blocks that are kept unpacked: those of files that are read one after another."""


class Entry(NamedTuple):
    """An entry of a directory."""

    reference: int
    """Where the inode is."""
    type: int


class StoredInode(NamedTuple):
    """An inode of any type. Fields that its type does not have keep their defaults."""

    header: InodeHeader
    type: InodeType
    """The basic type, of an extended inode too."""
    links: int = 1
    size: int = 0
    """Bytes of a content or target; of a directory, of its listing, and `EMPTY_LISTING`."""
    xattr: int = NO_XATTRS
    start: int = 0
    """The position of a file's first block, or of the piece in which a listing begins."""
    offset: int = 0
    """Where a file's end is in its fragment block, or a listing in its piece."""
    fragment: int = NO_FRAGMENT
    sizes: array[int] = array("I")
    """The stored sizes of a file's blocks."""
    target: bytes = b""
    device: int = 0


def read_superblock(path: Path) -> Superblock:
    """Read the superblock of the image at ``path``, and check it.

    Raises `CorruptError`, and `FledgeError` if the file cannot be read.
    """
    with explained(path, HINT), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        return check_superblock(file.read(SUPERBLOCK_SIZE), size)


def check_superblock(data: bytes, size: int) -> Superblock:
    """Return the superblock of an image of ``size`` bytes. Raises `MalformedError`."""
    if len(data) < SUPERBLOCK_SIZE:
        raise MalformedError("it ends in its superblock")
    superblock = SUPERBLOCK.unpack_from(data)
    if superblock.magic != MAGIC:
        raise MalformedError("it is no squashfs")
    version = superblock.major, superblock.minor
    if version != (4, 0):
        raise MalformedError(f"it has version {version[0]}.{version[1]}, and fledge reads 4.0")
    if superblock.bytes_used > size:
        raise MalformedError(f"it has {size} bytes of {superblock.bytes_used}")
    block_size = superblock.block_size
    is_power = block_size == 1 << min(superblock.block_log, 32)
    if not (structures.MIN_BLOCK_SIZE <= block_size <= structures.MAX_BLOCK_SIZE and is_power):
        raise MalformedError(f"its blocks cannot have {block_size} bytes")
    if superblock.compression not in set(Codec):
        raise MalformedError(f"its compressor {superblock.compression} is not known")
    return superblock


class Volume:
    """An open image. Every method raises `MalformedError` if what it reads is damaged."""

    def __init__(self, path: Path) -> None:
        """Open the image at ``path``.

        Raises `MalformedError`, `OSError`, and `FledgeError` if fledge cannot decompress it.
        """
        self.path = path
        self._file = OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        size = os.lseek(self._file.descriptor, 0, os.SEEK_END)
        data = os.pread(self._file.descriptor, SUPERBLOCK_SIZE, 0)
        self.superblock = check_superblock(data, size)
        codec = Codec(self.superblock.compression)
        decompress = decompressor(codec)
        if decompress is None:
            raise FledgeError(
                f"{path} is compressed with {codec.name.lower()}, which fledge cannot read",
                "Unpack it with unsquashfs, and make it again with another compressor.",
            )
        self._decompress = decompress
        self.budget = Budget(self.superblock.bytes_used)
        self._metadata = Metadata(self._file.descriptor, self.superblock.bytes_used, decompress)
        self._unpacked = 0
        """Bytes of contents outside of holes, of all inodes that were read."""
        self._ids: dict[int, int] = {}
        self._xattrs: dict[int, dict[bytes, bytes]] = {}
        self._fragments: OrderedDict[int, bytes] = OrderedDict()

    def id(self, place: int) -> int:
        """Return a user or group by its place in the list of IDs."""
        if place not in self._ids:
            if place >= self.superblock.ids:
                raise MalformedError(f"its owner is number {place} of {self.superblock.ids} IDs")
            record = self._metadata.lookup(self.superblock.id_table, ID.size, place)
            (self._ids[place],) = ID.unpack(record)
        return self._ids[place]

    def inode(self, reference: int) -> StoredInode:
        """Read the inode at a reference."""
        cursor = self._metadata.cursor(self.superblock.inode_table, reference)
        header = INODE_HEADER.unpack_from(cursor.read(INODE_HEADER.size))
        is_extended = header.type > EXTENDED
        try:
            kind = InodeType(header.type - (EXTENDED if is_extended else 0))
        except ValueError as error:
            raise MalformedError(f"its type {header.type} is not known") from error
        found = StoredInode(header, kind)
        if found.type is InodeType.DIRECTORY:
            return _directory(found, cursor, is_extended)
        if found.type is InodeType.FILE:
            return self._file_inode(found, cursor, is_extended)
        if found.type is InodeType.SYMLINK:
            links, size = SYMLINK_INODE.unpack_from(cursor.read(SYMLINK_INODE.size))
            check_target_size(size)
            found = found._replace(links=links, size=size, target=cursor.read(size))
        elif found.type in (InodeType.BLOCK_DEVICE, InodeType.CHAR_DEVICE):
            links, device = DEVICE_INODE.unpack_from(cursor.read(DEVICE_INODE.size))
            found = found._replace(links=links, device=device)
        else:
            (links,) = IPC_INODE.unpack_from(cursor.read(IPC_INODE.size))
            found = found._replace(links=links)
        if is_extended:
            (xattr,) = XATTR_NUMBER.unpack_from(cursor.read(XATTR_NUMBER.size))
            found = found._replace(xattr=xattr)
        return found

    def _file_inode(self, found: StoredInode, cursor: Cursor, is_extended: bool) -> StoredInode:
        if is_extended:
            large = LARGE_FILE_INODE.unpack_from(cursor.read(LARGE_FILE_INODE.size))
            found = found._replace(
                links=large.links,
                size=large.size,
                xattr=large.xattr,
                start=large.start,
                offset=large.offset,
                fragment=large.fragment,
            )
        else:
            basic = FILE_INODE.unpack_from(cursor.read(FILE_INODE.size))
            found = found._replace(
                size=basic.size, start=basic.start, offset=basic.offset, fragment=basic.fragment
            )
        count, rest = divmod(found.size, self.superblock.block_size)
        if rest and found.fragment == NO_FRAGMENT:
            count += 1
        self.budget.charge(4 * count)
        sizes = array("I", cursor.read(4 * count))
        if byteorder == "big":
            sizes.byteswap()
        # Many files may name the same blocks.
        self._unpacked += (count - sizes.count(0) + bool(rest)) * self.superblock.block_size
        if self._unpacked > MAX_DECOMPRESSED_SIZE:
            most = human_size(MAX_DECOMPRESSED_SIZE)
            raise MalformedError(f"files up to here have more than {most} outside of holes")
        return found._replace(sizes=sizes)

    def entries(self, directory: StoredInode) -> dict[bytes, Entry]:
        """Read the listing of a directory."""
        entries: dict[bytes, Entry] = {}
        left = directory.size - EMPTY_LISTING
        position = self.superblock.directory_table + directory.start
        cursor = Cursor(self._metadata, position, directory.offset)
        while left > 0:
            header = DIRECTORY_HEADER.unpack_from(cursor.read(DIRECTORY_HEADER.size))
            left -= DIRECTORY_HEADER.size
            if header.entries >= MAX_RUN:
                raise MalformedError(f"its listing has {header.entries + 1} entries in one run")
            for _ in range(header.entries + 1):
                entry = DIRECTORY_ENTRY.unpack_from(cursor.read(DIRECTORY_ENTRY.size))
                name = cursor.read(entry.name_size + 1)
                left -= DIRECTORY_ENTRY.size + len(name)
                if len(name) > MAX_NAME or name in (b".", b"..") or b"/" in name or b"\0" in name:
                    raise MalformedError(f"{printable(name[:MAX_NAME])!r} cannot be a name")
                if name in entries:
                    raise MalformedError(f"it has two entries {printable(name)!r}")
                self.budget.charge(ENTRY_COST)
                entries[name] = Entry(header.start << 16 | entry.offset, entry.type)
        if left < 0:
            raise MalformedError(f"its listing has more than {directory.size} bytes")
        return entries

    def xattrs(self, number: int) -> dict[bytes, bytes]:
        """Read extended attributes by their number, which several inodes may share.

        Names with another prefix are left out, as Linux does.
        """
        if number not in self._xattrs:
            self._xattrs[number] = dict(self._read_xattrs(number))
        return self._xattrs[number]

    def _read_xattrs(self, number: int) -> Iterator[tuple[bytes, bytes]]:
        table = self.superblock.xattr_table
        if table == NONE:
            raise MalformedError("it has extended attributes, of which there is no table")
        header = XATTR_HEADER.unpack_from(self._metadata.read(table, XATTR_HEADER.size))
        if number >= header.entries:
            raise MalformedError(f"its extended attributes are number {number} of {header.entries}")
        index = table + XATTR_HEADER.size
        entry = XATTR_ENTRY.unpack_from(self._metadata.lookup(index, XATTR_ENTRY.size, number))
        cursor = self._metadata.cursor(header.start, entry.reference)
        for _ in range(entry.attributes):
            kind, size = XATTR_NAME.unpack_from(cursor.read(XATTR_NAME.size))
            rest = cursor.read(size)
            value = _value(cursor)
            if kind & VALUE_ELSEWHERE:
                if len(value) != REFERENCE.size:
                    raise MalformedError("the reference to a value of an extended attribute is bad")
                (reference,) = REFERENCE.unpack(value)
                value = _value(self._metadata.cursor(header.start, reference))
            prefix = kind & (VALUE_ELSEWHERE - 1)
            self.budget.charge(XATTR_COST + len(rest) + len(value))
            if prefix < len(XATTR_PREFIXES):
                name = XATTR_PREFIXES[prefix] + rest
                if len(name) > MAX_NAME or not rest or b"\0" in name:
                    raise MalformedError("the name of an extended attribute is bad")
                yield name, value

    def unpack(self, inode: StoredInode, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Yield the data of a file as `Packed.unpack` does."""
        block_size = self.superblock.block_size
        position = inode.start
        for index, stored in enumerate(inode.sizes):
            offset = index * block_size
            if offset >= end:
                return
            length = min(block_size, inode.size - offset)
            if stored and offset + length > begin:
                yield offset, self._block(position, stored, length)
            position += stored & ~DATA_PLAIN
        offset = len(inode.sizes) * block_size
        length = inode.size - offset
        if length and begin < inode.size and offset < end:
            data = self._fragment(inode.fragment)[inode.offset : inode.offset + length]
            if len(data) < length:
                raise MalformedError(f"its end is beyond its fragment block {inode.fragment}")
            yield offset, data

    def _fragment(self, number: int) -> bytes:
        """Return a fragment block, unpacked."""
        if number in self._fragments:
            self._fragments.move_to_end(number)
            return self._fragments[number]
        if number >= self.superblock.fragments:
            raise MalformedError(f"it has number {number} of {self.superblock.fragments} fragments")
        table = self.superblock.fragment_table
        record = self._metadata.lookup(table, FRAGMENT_ENTRY.size, number)
        entry = FRAGMENT_ENTRY.unpack_from(record)
        data = self._block(entry.start, entry.size, None)
        self._fragments[number] = data
        if len(self._fragments) > CACHED_FRAGMENTS:
            self._fragments.popitem(last=False)
        return data

    def _block(self, position: int, stored: int, length: int | None) -> bytes:
        """Return a data block, unpacked, of ``length`` bytes; None: of any length."""
        size = stored & ~DATA_PLAIN
        if size > self.superblock.block_size:
            raise MalformedError(f"the block at byte {position} has {size} bytes")
        data = self._metadata.read(position, size)
        if not stored & DATA_PLAIN:
            data = self._decompress(data, self.superblock.block_size)
        if length is None:
            return data
        if len(data) > length:
            raise MalformedError(f"the block at byte {position} has more than {length} bytes")
        return data.ljust(length, b"\0")


def _directory(found: StoredInode, cursor: Cursor, is_extended: bool) -> StoredInode:
    if is_extended:
        large = LARGE_DIRECTORY_INODE.unpack_from(cursor.read(LARGE_DIRECTORY_INODE.size))
        return found._replace(
            links=large.links,
            size=large.size,
            xattr=large.xattr,
            start=large.start,
            offset=large.offset,
        )
    basic = DIRECTORY_INODE.unpack_from(cursor.read(DIRECTORY_INODE.size))
    return found._replace(
        links=basic.links, size=basic.size, start=basic.start, offset=basic.offset
    )


def _value(cursor: Cursor) -> bytes:
    """Read the value of an extended attribute."""
    (size,) = XATTR_VALUE.unpack_from(cursor.read(XATTR_VALUE.size))
    if size > MAX_XATTR_SIZE:
        raise MalformedError(f"an extended attribute has {size} bytes")
    return cursor.read(size)
