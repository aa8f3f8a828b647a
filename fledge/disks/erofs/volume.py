"""Reads the superblock, inodes and contents of an erofs image.

It follows fs/erofs in the kernel's sources. Nothing outside of the filesystem is ever read. Memory
and time are bounded whatever its bytes are: metadata may be read only once, so all of it together
is no larger than the filesystem. The sizes of contents have a sum that bounds their indexes, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import msgspec

from fledge.disks.erofs import xattr
from fledge.disks.erofs.compression import Codec
from fledge.disks.erofs.constants import MAGIC, SUPERBLOCK_OFFSET
from fledge.disks.erofs.structures import (
    CHUNK_ADDRESS,
    CHUNK_INDEX,
    COMPACT_INODE,
    EXTENDED,
    FORMAT_BITS,
    HOLE,
    INODE,
    SLOT_SIZE,
    SUPERBLOCK,
    ChunkFormat,
    Compat,
    DataLayout,
    Incompat,
    Inode,
    Superblock,
    feature_names,
    superblock_checksum,
    unpack_seconds,
)
from fledge.errors import CorruptError, FledgeError, MalformedError, unreadable
from fledge.report import human_size
from fledge.tree import NANOSECONDS
from fledge.tree.budget import Budget
from fledge.tree.compression import MAX_DECOMPRESSED_SIZE
from fledge.tree.content import (
    Content,
    DataExtent,
    OpenFile,
    Span,
    Sparse,
    content_size,
    read_range,
)

READABLE = (
    Incompat.ZERO_PADDING
    | Incompat.COMPR_CFGS
    | Incompat.CHUNKED_FILE
    | Incompat.DEVICE_TABLE
    | Incompat.ZTAILPACKING
)
"""Any other incompatible feature changes the format in a way that is not understood here."""

READABLE_CODECS = 1 << Codec.LZ4 | 1 << Codec.ZSTD

MIN_BLOCK_BITS, MAX_BLOCK_BITS = 9, 16
MAX_SIZE = (1 << 63) - 1

EXTENT_COST = 200
"""Bytes of memory that an extent takes."""

ADDRESSES_AT_ONCE = 1 << 16
"""Addresses of chunks that are unpacked together."""


class StoredInode(msgspec.Struct, frozen=True):
    """An inode of either size."""

    nid: int
    inode: Inode
    end: int
    """The position behind it and its extended attributes, where its tail, chunks or indexes are."""

    @property
    def mtime_ns(self) -> int:
        """The time of the node, in nanoseconds since 1970."""
        return unpack_seconds(self.inode.mtime) * NANOSECONDS + self.inode.mtime_nsec

    @property
    def is_compressed(self) -> bool:
        """Whether its content is compressed."""
        layouts = (DataLayout.COMPRESSED_FULL, DataLayout.COMPRESSED_COMPACT)
        return self.inode.layout in layouts


class Volume:
    """The filesystem in an image.

    Its methods raise `MalformedError` if the image breaks the rules of the format.
    """

    def __init__(self, opened: OpenFile, path: Path) -> None:
        """Read the superblock of an open image; ``path`` is for messages.

        Raises `CorruptError` if there is no such filesystem, `FledgeError` if it has features that
        change the format, and `MalformedError`.
        """
        self._opened = opened
        self._path = path
        descriptor = opened.descriptor
        start = os.pread(descriptor, SUPERBLOCK_OFFSET + (1 << MAX_BLOCK_BITS), 0)
        self.superblock = _superblock(start, path)
        _check(self.superblock, start, path)
        self.block_size = self.superblock.block_size
        self.size = self.superblock.blocks * self.block_size
        """Bytes of the filesystem. Other data may follow it."""
        size = os.lseek(descriptor, 0, os.SEEK_END)
        if self.size > size:
            raise MalformedError(
                f"it is cut off: it has {size} bytes, and its filesystem {self.size}"
            )
        self.budget = Budget(self.size)
        self._unread = self.size
        self._unused = self.size + MAX_DECOMPRESSED_SIZE
        self._shared_xattrs: dict[int, tuple[tuple[bytes, bytes], ...]] = {}

    def read(self, position: int, size: int) -> bytes:
        """Return metadata, which is read only once."""
        self._unread -= size
        if self._unread < 0:
            raise MalformedError("its metadata overlaps")
        return self.read_data(position, size)

    def read_data(self, position: int, size: int) -> bytes:
        """Return data of the filesystem, which contents may share."""
        self._check_range(position, size)
        data = os.pread(self._opened.descriptor, size, position)
        if len(data) < size:
            raise MalformedError("the image is shorter than it was")
        return data

    def use(self, size: int) -> None:
        """Count bytes of a content. Contents may share data, so they may exceed the filesystem."""
        self._unused -= size
        if self._unused < 0:
            raise MalformedError(
                f"contents up to here are larger than {human_size(MAX_DECOMPRESSED_SIZE)}"
            )

    def inode(self, nid: int) -> StoredInode:
        """Return the inode of that number."""
        position = self.superblock.meta_blkaddr * self.block_size + nid * SLOT_SIZE
        data = self.read(position, COMPACT_INODE.size)
        compact = COMPACT_INODE.unpack_from(data)
        if compact.format & EXTENDED:
            data += self.read(position + len(data), INODE.size - len(data))
            inode = INODE.unpack_from(data)
        else:
            inode = Inode(
                **compact._asdict(),
                mtime=self.superblock.build_time,
                mtime_nsec=self.superblock.build_time_nsec,
            )
        if inode.format & ~FORMAT_BITS or inode.layout not in {*DataLayout}:
            raise MalformedError(f"its format {inode.format:#x} is not known")
        if inode.size > MAX_SIZE or inode.mtime_nsec >= NANOSECONDS:
            raise MalformedError("its size or time is impossible")
        end = position + len(data) + xattr.body_size(inode.xattr_count)
        return StoredInode(nid, inode, end)

    def xattrs(self, stored: StoredInode) -> Iterator[tuple[bytes, bytes]]:
        """Yield the extended attributes of an inode."""
        size = xattr.body_size(stored.inode.xattr_count)
        if not size:
            return iter(())
        ids, entries = xattr.unpack_body(self.read(stored.end - size, size))
        return chain(xattr.unpack(entries), *(self._shared_xattr(each) for each in ids))

    def _shared_xattr(self, number: int) -> tuple[tuple[bytes, bytes], ...]:
        """The shared attribute of that number; empty if no kernel shows it."""
        if number not in self._shared_xattrs:
            position = self.superblock.xattr_blkaddr * self.block_size + number * xattr.UNIT
            size = xattr.entry_size(self.read(position, xattr.ENTRY.size))
            self._shared_xattrs[number] = tuple(xattr.unpack(self.read_data(position, size)))
        return self._shared_xattrs[number]

    def content(self, stored: StoredInode) -> Content:
        """Return the content of an inode that is not compressed. It stays in the image."""
        size, start = stored.inode.size, stored.inode.union * self.block_size
        if not size:
            return b""
        if stored.inode.layout == DataLayout.CHUNK_BASED:
            return self._sparse(size, tuple(self._merged(self._chunks(stored), size)))
        if stored.inode.layout == DataLayout.FLAT_PLAIN:
            return self._span(start, size)
        tail = (size - 1) % self.block_size + 1
        if stored.end % self.block_size + tail > self.block_size:
            raise MalformedError("the end of its content crosses blocks")
        if tail == size:
            return self._span(stored.end, size)
        self._check_range(start, size - tail)
        self._check_range(stored.end, tail)
        self.use(size)
        extents = (DataExtent(0, start, size - tail), DataExtent(size - tail, stored.end, tail))
        return self._sparse(size, extents)

    def blocks(self, content: Content) -> Iterator[bytes]:
        """Yield the blocks of a content that is metadata."""
        for offset in range(0, content_size(content), self.block_size):
            block = read_range(content, offset, self.block_size)
            self._unread -= len(block)
            if self._unread < 0:
                raise MalformedError("its metadata overlaps")
            yield block

    def _span(self, position: int, size: int) -> Span:
        self._check_range(position, size)
        self.use(size)
        return Span(self._path, position, size, opened=self._opened)

    def _sparse(self, size: int, extents: tuple[DataExtent, ...]) -> Sparse:
        return Sparse(size, self._path, extents, opened=self._opened)

    def _check_range(self, position: int, size: int) -> None:
        if position + size > self.size:
            raise MalformedError("it reaches beyond the end of the filesystem")

    def _chunks(self, stored: StoredInode) -> Iterator[DataExtent]:
        """Yield the chunks that are not holes; the last one may reach beyond the end."""
        union = stored.inode.union
        if union & 0xFFFF & ~int(ChunkFormat.BLOCK_BITS | ChunkFormat.INDEXES):
            raise MalformedError("the format of its chunks is not known")
        chunk_size = self.block_size << (union & ChunkFormat.BLOCK_BITS)
        has_indexes = bool(union & ChunkFormat.INDEXES)
        width = CHUNK_INDEX.size if has_indexes else CHUNK_ADDRESS.size
        start = stored.end + -stored.end % width
        count = -(-stored.inode.size // chunk_size)
        self._check_range(start, count * width)
        for first in range(0, count, ADDRESSES_AT_ONCE):
            data = self.read(start + first * width, min(ADDRESSES_AT_ONCE, count - first) * width)
            if has_indexes:
                indexes = list(CHUNK_INDEX.iter_unpack(data))
                if any(index.device for index in indexes if index.block != HOLE):
                    raise MalformedError("its data is on another device")
                blocks = [index.block for index in indexes]
            else:
                blocks = [address.block for address in CHUNK_ADDRESS.iter_unpack(data)]
            for number, block in enumerate(blocks, first):
                if block != HOLE:
                    yield DataExtent(number * chunk_size, block * self.block_size, chunk_size)

    def _merged(self, chunks: Iterator[DataExtent], size: int) -> Iterator[DataExtent]:
        """Join chunks that are adjacent in a content of ``size`` bytes and on disk."""
        offset = source = length = 0
        for chunk in chunks:
            if length and chunk[:2] == (offset + length, source + length):
                length += chunk.length
            else:
                if length:
                    yield self._extent(offset, source, length)
                offset, source, length = chunk
        if length:
            yield self._extent(offset, source, min(length, size - offset))

    def _extent(self, offset: int, source: int, length: int) -> DataExtent:
        self._check_range(source, length)
        self.use(length)
        self.budget.charge(EXTENT_COST)
        return DataExtent(offset, source, length)


def read_superblock(path: Path) -> Superblock:
    """Read the superblock of the image at ``path``, without checking it.

    Raises `CorruptError` if it has none, `FledgeError` if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _superblock(file.read(SUPERBLOCK_OFFSET + SUPERBLOCK.size), path)
    except OSError as error:
        raise unreadable(path, error) from error


def _superblock(start: bytes, path: Path) -> Superblock:
    """Return the superblock in the first bytes of an image."""
    if len(start) >= SUPERBLOCK_OFFSET + SUPERBLOCK.size:
        superblock = SUPERBLOCK.unpack_from(start, SUPERBLOCK_OFFSET)
        if superblock.magic == MAGIC:
            return superblock
    raise CorruptError(
        f"{path} is not an erofs filesystem",
        "If it is the image of a whole disk, take the partition with the filesystem.",
    )


def _check(superblock: Superblock, start: bytes, path: Path) -> None:
    """Raise if the filesystem cannot be read. ``start`` are the first bytes of the image."""
    if not MIN_BLOCK_BITS <= superblock.block_bits <= MAX_BLOCK_BITS:
        raise MalformedError("the size of its blocks is impossible")
    if superblock.feature_compat & Compat.SB_CHKSUM:
        size = superblock.block_size
        end = size if size > SUPERBLOCK_OFFSET else SUPERBLOCK_OFFSET + size
        if superblock.checksum != superblock_checksum(start[SUPERBLOCK_OFFSET:end]):
            raise MalformedError("the checksum of its superblock is wrong")
    # As a plain number: the inverse of a flag lacks the bits that have no name.
    unknown = superblock.feature_incompat & ~int(READABLE)
    if superblock.extra_devices:
        unknown |= Incompat.DEVICE_TABLE
    names = feature_names(Incompat, unknown)
    if superblock.feature_incompat & Incompat.COMPR_CFGS:
        codecs = superblock.codecs & ~READABLE_CODECS
        known = {1 << codec: codec.name.lower() for codec in Codec}
        bits = (1 << number for number in range(16))
        names += [known.get(bit, f"codec {bit:#x}") for bit in bits if codecs & bit]
    if names:
        raise FledgeError(
            f"{path} has features that fledge cannot read: {', '.join(names)}",
            "Mount it, and look at what the kernel shows.",
        )
    if superblock.directory_block_bits:
        raise MalformedError("the size of its directory blocks is impossible")
