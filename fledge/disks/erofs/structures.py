"""The structures of erofs on disk.

Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h in the kernel's sources. All numbers
are little-endian. What fledge writes::

    block  0 │ 1024 bytes of zeros │ superblock │ configurations of the codecs │ zeros
           1 │ inode, extended attributes, end of the content or index │ inode, … │ …
             │ shared extended attributes
             │ blocks of directories and of long symlinks
             │ blocks of files

An inode is named by its nid: its position in units of 32 bytes, from the block ``meta_blkaddr`` on,
which is block 0. The root's nid has 16 bits, so it is the first inode. What follows an inode
depends on its `DataLayout`::

    FLAT_PLAIN            (the content is in the blocks from raw_blkaddr on)
    FLAT_INLINE           │ the end of the content, which does not cross blocks
    CHUNK_BASED           │ the block of each chunk, or HOLE
    COMPRESSED_FULL       │ header, 8 bytes of zeros │ an index for each block of the content

``compression`` describes compressed contents, ``xattr`` extended attributes, and ``directory`` the
blocks of directories.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated, NamedTuple

from crc32c import crc32c

from fledge.disks.erofs.constants import SUPERBLOCK_OFFSET
from fledge.tree.binary import Layout, octets, u8, u16, u32, u64

BLOCK_BITS = 12
BLOCK_SIZE = 1 << BLOCK_BITS
"""Bytes of a block in what fledge writes. Kernels before 6.4 take no other size than a page's."""

SLOT_SIZE = 32
"""Bytes in which nids count."""

MAX_BLOCKS = (1 << 32) - 1
"""Blocks of a filesystem, 16 TiB: addresses have 32 bits, and the highest one is `HOLE`."""

MAX_LINKS = (1 << 32) - 1
"""Names that one inode can have."""

HOLE = (1 << 32) - 1
"""The address of a chunk of zeros (EROFS_NULL_ADDR)."""


class Compat(IntFlag):
    """The features that a kernel need not know."""

    SB_CHKSUM = 0x1
    MTIME = 0x2
    """Times of inodes are those of modification."""
    XATTR_FILTER = 0x4


class Incompat(IntFlag):
    """The features that a kernel must know. Two of them share a bit with an older one."""

    ZERO_PADDING = 0x1
    """Compressed data ends with its last block, and zeros are before it."""
    COMPR_CFGS = 0x2
    """Configurations of codecs follow the superblock; compressed data may take several blocks."""
    CHUNKED_FILE = 0x4
    DEVICE_TABLE = 0x8
    """Or COMPR_HEAD2: a file may use a second codec."""
    ZTAILPACKING = 0x10
    """The end of compressed data may follow the index."""
    FRAGMENTS = 0x20
    """Or DEDUPE: contents may share compressed data."""
    XATTR_PREFIXES = 0x40
    BIG_ADDRESSES = 0x80
    """48BIT: addresses have 48 bits."""
    METABOX = 0x100


class Superblock(NamedTuple):
    """struct erofs_super_block."""

    magic: Annotated[int, u32(0x0)]
    checksum: Annotated[int, u32(0x4)]
    """crc32c, not inverted at its end, of the rest of the block from the superblock on."""
    feature_compat: Annotated[int, u32(0x8)]
    block_bits: Annotated[int, u8(0xC)]
    """The base-2 logarithm of the block size."""
    extension_slots: Annotated[int, u8(0xD)]
    """Units of 16 bytes by which the superblock is longer than 128 bytes."""
    root_nid: Annotated[int, u16(0xE)]
    inodes: Annotated[int, u64(0x10)]
    build_time: Annotated[int, u64(0x18)]
    """Seconds since 1970, signed: the time of compact inodes."""
    build_time_nsec: Annotated[int, u32(0x20)]
    blocks: Annotated[int, u32(0x24)]
    meta_blkaddr: Annotated[int, u32(0x28)]
    """The block from which nids count."""
    xattr_blkaddr: Annotated[int, u32(0x2C)]
    """The block from which shared extended attributes count."""
    uuid: Annotated[bytes, octets(0x30, 16)]
    volume_name: Annotated[bytes, octets(0x40, 16)]
    feature_incompat: Annotated[int, u32(0x50)]
    codecs: Annotated[int, u16(0x54)]
    """With COMPR_CFGS one bit for each `compression.Codec` in use; or else LZ4's window."""
    extra_devices: Annotated[int, u16(0x56)]
    device_table: Annotated[int, u16(0x58)]
    directory_block_bits: Annotated[int, u8(0x5A)]
    """How much larger the blocks of directories are; 0 in all kernels."""
    xattr_prefixes: Annotated[int, u8(0x5B)]
    xattr_prefix_start: Annotated[int, u32(0x5C)]
    packed_nid: Annotated[int, u64(0x60)]

    @property
    def block_size(self) -> int:
        """Bytes of a block."""
        return 1 << self.block_bits

    @property
    def size(self) -> int:
        """Bytes of the superblock with its extension."""
        return SUPERBLOCK.size + 16 * self.extension_slots

    @property
    def features(self) -> list[str]:
        """The names of the features, those that a kernel need not know first."""
        return [
            *feature_names(Compat, self.feature_compat),
            *feature_names(Incompat, self.feature_incompat),
        ]


SUPERBLOCK = Layout(Superblock, size=128)


def feature_names(kind: type[Compat] | type[Incompat], flags: int) -> list[str]:
    """Return the names of the set bits, in small letters; those of unknown ones as numbers."""
    known = {int(flag): str(flag.name).lower() for flag in kind}
    bits = (1 << number for number in range(32))
    return [known.get(bit, f"{kind.__name__.lower()} {bit:#x}") for bit in bits if flags & bit]


def superblock_checksum(block: bytes) -> int:
    """Return the checksum of a superblock; ``block`` is the rest of its block, from it on."""
    zeroed = bytearray(block)
    _put_checksum(zeroed, 0)
    return crc32c(bytes(zeroed)) ^ 0xFFFFFFFF


_put_checksum = SUPERBLOCK.setter("checksum")


def checked_superblock(start: bytes) -> bytes:
    """Return the first block of a filesystem, ``start``, with the checksum of its superblock."""
    block = bytearray(start[SUPERBLOCK_OFFSET:])
    _put_checksum(block, superblock_checksum(bytes(block)))
    return start[:SUPERBLOCK_OFFSET] + bytes(block)


class DataLayout(IntEnum):
    """Where the content of an inode is."""

    FLAT_PLAIN = 0
    COMPRESSED_FULL = 1
    """Each index has 8 bytes."""
    FLAT_INLINE = 2
    COMPRESSED_COMPACT = 3
    """An index has 4 or 2 bytes."""
    CHUNK_BASED = 4


EXTENDED = 1
"""The bit of ``format`` in an extended inode. The data layout is in the three bits above it."""
FORMAT_BITS = 0xF
"""The bits of ``format`` that have a meaning."""


class CompactInode(NamedTuple):
    """struct erofs_inode_compact."""

    format: Annotated[int, u16(0x0)]
    xattr_count: Annotated[int, u16(0x2)]
    mode: Annotated[int, u16(0x4)]
    links: Annotated[int, u16(0x6)]
    size: Annotated[int, u32(0x8)]
    union: Annotated[int, u32(0x10)]
    number: Annotated[int, u32(0x14)]
    uid: Annotated[int, u16(0x18)]
    gid: Annotated[int, u16(0x1A)]


class Inode(NamedTuple):
    """struct erofs_inode_extended."""

    format: Annotated[int, u16(0x0)]
    xattr_count: Annotated[int, u16(0x2)]
    """0, or by how many units of 4 bytes the extended attributes exceed 8 bytes."""
    mode: Annotated[int, u16(0x4)]
    """With the S_IFMT bits."""
    size: Annotated[int, u64(0x8)]
    union: Annotated[int, u32(0x10)]
    """The first block (flat), the `ChunkFormat` (chunk-based), the number of blocks (compressed),
    or the device number."""
    number: Annotated[int, u32(0x14)]
    """The inode number for programs that take 32 bits; the kernel shows the nid."""
    uid: Annotated[int, u32(0x18)]
    gid: Annotated[int, u32(0x1C)]
    mtime: Annotated[int, u64(0x20)]
    """Seconds since 1970, signed."""
    mtime_nsec: Annotated[int, u32(0x28)]
    links: Annotated[int, u32(0x2C)]

    @property
    def layout(self) -> int:
        """A `DataLayout`, or a number that is none."""
        return self.format >> 1 & 7


COMPACT_INODE = Layout(CompactInode, size=32)
INODE = Layout(Inode, size=64)


class ChunkFormat(IntFlag):
    """The bits of ``union`` in a chunk-based inode."""

    BLOCK_BITS = 0x1F
    """The base-2 logarithm of the blocks in a chunk."""
    INDEXES = 0x20
    """The addresses are in `ChunkIndex` structures."""


class ChunkIndex(NamedTuple):
    """struct erofs_inode_chunk_index."""

    advise: Annotated[int, u16(0x0)]
    device: Annotated[int, u16(0x2)]
    """0: this image."""
    block: Annotated[int, u32(0x4)]


class ChunkAddress(NamedTuple):
    """An entry of the block map, which chunks have without indexes."""

    block: Annotated[int, u32(0x0)]


CHUNK_INDEX = Layout(ChunkIndex, size=8)
CHUNK_ADDRESS = Layout(ChunkAddress, size=4)

_SIGN = 1 << 63


def pack_seconds(seconds: int) -> int:
    """Return the unsigned number that stores signed seconds."""
    return seconds % (1 << 64)


def unpack_seconds(stored: int) -> int:
    """Return the signed seconds that an unsigned number stores."""
    return (stored ^ _SIGN) - _SIGN
