"""The on-disk structures of ext4: which fields they have, and where.

Names and offsets are those of Documentation/filesystems/ext4 in the kernel's sources, without the
prefixes of the names. Numbers are little-endian, those of the journal big-endian.

A filesystem is divided into block groups of 32,768 blocks of 4096 bytes. The bitmaps and inode
tables of 16 groups lie together, in the first of them (flex_bg)::

    group 0                   group 1          group 2   group 3               group 16
    ┌──────┬───────────┬──────┬──────┬─────────┬─────────┬──────┬─────────┬─  ─┬───────────┬──────┬─
    │ copy │ flex_bg 0 │ data │ copy │ data    │ data    │ copy │ data    │ .. │ flex_bg 1 │ data │
    └──────┴───────────┴──────┴──────┴─────────┴─────────┴──────┴─────────┴─  ─┴───────────┴──────┴─

    copy       superblock │ group descriptors │ blocks reserved for more group descriptors
               In groups 0 and 1 and those that are powers of 3, 5 and 7 (sparse_super). In
               group 0 there are 1024 unused bytes before it.
    flex_bg    16 block bitmaps │ 16 inode bitmaps │ 16 inode tables
               In the first one, the journal is before the inode tables.
    data       directories, symlinks and extended attributes │ files, with nodes of extent trees

An inode has 256 bytes in the inode table of its group::

    0x00 ┌───────────────────────────────────────────────────────────────────────────┐
         │ mode, owner, size, times, ...                                             │
    0x28 ├───────────────────────────────────────────────────────────────────────────┤
         │ block, 60 bytes: extent tree, target of a short symlink, or device number │
    0x64 ├───────────────────────────────────────────────────────────────────────────┤
         │ upper halves of numbers, checksum, ...                                    │
    0xA0 ├───────────────────────────────────────────────────────────────────────────┤
         │ extended attributes                                                       │
    0x100└───────────────────────────────────────────────────────────────────────────┘

An extent is a run of blocks of a file that is a run of blocks on disk. The inode holds up to four.
More are the leaves of a tree, whose root is in the inode. Each node takes one block::

    inode                    block                      block
    ┌────────┬───────────┐   ┌────────┬─────────────┐   ┌────────┬──────────────┬──────────┐
    │ header │ 4 indexes ├──►│ header │ 340 indexes ├──►│ header │ 340 extents  │ checksum │
    └────────┴───────────┘   └────────┴─────────────┘   └────────┴──────────────┴──────────┘
"""

# No "from __future__ import annotations" here: `Layout` evaluates all of these when it is loaded.

from collections.abc import Sequence
from enum import IntFlag
from functools import lru_cache
from struct import Struct
from typing import Annotated, NamedTuple

import msgspec
from crc32c import crc32c

from fledge.tree import NANOSECONDS
from fledge.tree.binary import Layout, octets, u8, u16, u32, u64
from fledge.tree.device_numbers import decode_device, encode_device

BLOCK_SIZE = 4096
"""Bytes in a block of the filesystems that fledge writes."""
LOG_BLOCK_SIZE = 2
"""The block size in a superblock: 1024 << `LOG_BLOCK_SIZE`."""
SECTOR_SIZE = 512
"""Bytes in the unit in which an inode counts its blocks."""

SUPERBLOCK_SIZE = 1024
BLOCKS_PER_GROUP = 8 * BLOCK_SIZE
"""A block bitmap is one block, with a bit for each block of the group."""
DESCRIPTOR_SIZE = 64
DESCRIPTORS_PER_BLOCK = BLOCK_SIZE // DESCRIPTOR_SIZE
INODE_SIZE = 256
INODES_PER_BLOCK = BLOCK_SIZE // INODE_SIZE
MAX_INODES_PER_GROUP = 8 * BLOCK_SIZE
"""An inode bitmap is one block as well."""

ROOT = 2
"""The inode number of the root directory."""
RESIZE = 7
"""The inode number of the file that holds the reserved blocks for group descriptors."""
JOURNAL = 8
"""The inode number of the journal."""
LOST_AND_FOUND = 11
"""The first inode number that is not reserved, which mke2fs gives to /lost+found."""

DIRECT_BLOCKS = 12
"""Pointers of an inode without extents that lead straight to blocks of the file."""
INODE_BLOCK_SIZE = 60
"""Bytes of the field ``block`` of an inode. It holds the target of any symlink that is shorter."""

DYNAMIC_REVISION = 1
CLEAN = 1
"""State of a superblock: unmounted without errors."""
CONTINUE_ON_ERRORS = 1
NEVER = 0xFFFF
"""The count of mounts between checks that stands for none."""
HALF_MD4 = 1
"""The version of the hash of directories that `fledge.ext4.half_md4` computes."""
CRC32C = 1
"""The type of all checksums."""
UNSIGNED_HASH = 2
"""A flag of a superblock: directory hashes take the bytes of a name as unsigned."""
XATTRS_AND_ACLS = 0xC
"""Default mount options: user_xattr and acl."""
JOURNAL_BACKUP = 1
"""The superblock repeats where the journal is."""


class Compat(IntFlag):
    """Features that a kernel may not know and still write."""

    DIR_PREALLOC = 0x1
    IMAGIC_INODES = 0x2
    HAS_JOURNAL = 0x4
    EXT_ATTR = 0x8
    RESIZE_INODE = 0x10
    DIR_INDEX = 0x20
    SPARSE_SUPER2 = 0x200
    FAST_COMMIT = 0x400
    STABLE_INODES = 0x800
    ORPHAN_FILE = 0x1000


class Incompat(IntFlag):
    """Features that a kernel must know to mount."""

    COMPRESSION = 0x1
    FILETYPE = 0x2
    RECOVER = 0x4
    JOURNAL_DEV = 0x8
    META_BG = 0x10
    EXTENTS = 0x40
    BIT64 = 0x80
    MMP = 0x100
    FLEX_BG = 0x200
    EA_INODE = 0x400
    DIRDATA = 0x1000
    CSUM_SEED = 0x2000
    LARGEDIR = 0x4000
    INLINE_DATA = 0x8000
    ENCRYPT = 0x10000
    CASEFOLD = 0x20000


class RoCompat(IntFlag):
    """Features that a kernel must know to write."""

    SPARSE_SUPER = 0x1
    LARGE_FILE = 0x2
    BTREE_DIR = 0x4
    HUGE_FILE = 0x8
    GDT_CSUM = 0x10
    DIR_NLINK = 0x20
    EXTRA_ISIZE = 0x40
    QUOTA = 0x100
    BIGALLOC = 0x200
    METADATA_CSUM = 0x400
    READONLY = 0x1000
    PROJECT = 0x2000
    SHARED_BLOCKS = 0x4000
    VERITY = 0x8000
    ORPHAN_PRESENT = 0x10000


_FEATURE_NAMES = {
    "RECOVER": "needs_recovery",
    "EXTENTS": "extent",
    "BIT64": "64bit",
    "CSUM_SEED": "metadata_csum_seed",
    "LARGEDIR": "large_dir",
    "GDT_CSUM": "uninit_bg",
    "READONLY": "read-only",
}
"""Features to which e2fsprogs give a different name than the kernel."""


def feature_names(kind: type[IntFlag], bits: int) -> list[str]:
    """The names that dumpe2fs(8) gives to the features in ``bits``, which are all of one kind."""
    known = {
        flag.value: _FEATURE_NAMES.get(name, name.lower())
        for name, flag in kind.__members__.items()
    }
    unknown = f"FEATURE_{kind.__name__[0]}"
    return [known.get(1 << bit, f"{unknown}{bit}") for bit in range(32) if bits >> bit & 1]


COMPAT = Compat.HAS_JOURNAL | Compat.EXT_ATTR | Compat.RESIZE_INODE | Compat.DIR_INDEX
INCOMPAT = (
    Incompat.FILETYPE | Incompat.EXTENTS | Incompat.BIT64 | Incompat.FLEX_BG | Incompat.CSUM_SEED
)
READ_ONLY_COMPAT = Compat.EXT_ATTR | Compat.DIR_INDEX
"""The compatible features of a filesystem that is never written."""
RO_COMPAT = (
    RoCompat.SPARSE_SUPER
    | RoCompat.LARGE_FILE
    | RoCompat.HUGE_FILE
    | RoCompat.DIR_NLINK
    | RoCompat.EXTRA_ISIZE
    | RoCompat.METADATA_CSUM
)


def checksum(seed: int, data: bytes | bytearray) -> int:
    """ext4's CRC-32C of ``data``: it continues from ``seed``, and neither end is inverted."""
    return crc32c(data, seed ^ _LOW_32_BITS) ^ _LOW_32_BITS


def filesystem_seed(uuid: bytes) -> int:
    """The seed of all checksums of a filesystem but its superblock's."""
    return checksum(SUPERBLOCK_SEED, uuid)


def inode_seed(seed: int, number: int, generation: int = 0) -> int:
    """The seed of the checksums of an inode, its extent tree and its directory blocks.

    ``seed`` is that of the filesystem.
    """
    return checksum(seed, _NUMBER_AND_GENERATION.pack(number, generation))


SUPERBLOCK_SEED = _LOW_32_BITS = 0xFFFFFFFF
_NUMBER_AND_GENERATION = Struct("<II")


CHECKSUM_SEED = int.from_bytes(b"seed", "little")
"""The seed of all checksums of the images that fledge writes (metadata_csum_seed). Without it they
would depend on the UUID, and so all metadata on every file."""
HASH_SEED = b"fledge hash seed"
"""The seed of the hash of names in directories. Any 16 bytes but zeros will do."""


class Superblock(NamedTuple):
    """struct ext4_super_block. Fields that fledge neither writes nor reads are left out."""

    inodes_count: Annotated[int, u32(0x0)]
    blocks_count: Annotated[int, u32(0x4), u32(0x150)]
    reserved_blocks_count: Annotated[int, u32(0x8), u32(0x154)]
    free_blocks_count: Annotated[int, u32(0xC), u32(0x158)]
    free_inodes_count: Annotated[int, u32(0x10)]
    first_data_block: Annotated[int, u32(0x14)]
    log_block_size: Annotated[int, u32(0x18)]
    log_cluster_size: Annotated[int, u32(0x1C)]
    blocks_per_group: Annotated[int, u32(0x20)]
    clusters_per_group: Annotated[int, u32(0x24)]
    inodes_per_group: Annotated[int, u32(0x28)]
    mtime: Annotated[int, u32(0x2C)]
    """When it was last mounted, in seconds since 1970, as all times here."""
    wtime: Annotated[int, u32(0x30)]
    mnt_count: Annotated[int, u16(0x34)]
    max_mnt_count: Annotated[int, u16(0x36)]
    magic: Annotated[int, u16(0x38)]
    state: Annotated[int, u16(0x3A)]
    errors: Annotated[int, u16(0x3C)]
    lastcheck: Annotated[int, u32(0x40)]
    rev_level: Annotated[int, u32(0x4C)]
    first_ino: Annotated[int, u32(0x54)]
    inode_size: Annotated[int, u16(0x58)]
    block_group_nr: Annotated[int, u16(0x5A)]
    feature_compat: Annotated[int, u32(0x5C)]
    feature_incompat: Annotated[int, u32(0x60)]
    feature_ro_compat: Annotated[int, u32(0x64)]
    uuid: Annotated[bytes, octets(0x68, 16)]
    volume_name: Annotated[bytes, octets(0x78, 16)]
    last_mounted: Annotated[bytes, octets(0x88, 64)]
    reserved_gdt_blocks: Annotated[int, u16(0xCE)]
    journal_inum: Annotated[int, u32(0xE0)]
    last_orphan: Annotated[int, u32(0xE8)]
    hash_seed: Annotated[bytes, octets(0xEC, 16)]
    def_hash_version: Annotated[int, u8(0xFC)]
    jnl_backup_type: Annotated[int, u8(0xFD)]
    desc_size: Annotated[int, u16(0xFE)]
    default_mount_opts: Annotated[int, u32(0x100)]
    first_meta_bg: Annotated[int, u32(0x104)]
    mkfs_time: Annotated[int, u32(0x108)]
    jnl_blocks: Annotated[bytes, octets(0x10C, 68)]
    """The field ``block`` of the journal's inode, then the halves of its size, the upper first."""
    min_extra_isize: Annotated[int, u16(0x15C)]
    want_extra_isize: Annotated[int, u16(0x15E)]
    flags: Annotated[int, u32(0x160)]
    log_groups_per_flex: Annotated[int, u8(0x174)]
    checksum_type: Annotated[int, u8(0x175)]
    kbytes_written: Annotated[int, u64(0x178)]
    overhead_clusters: Annotated[int, u32(0x248)]
    backup_group_1: Annotated[int, u32(0x24C)]
    """With sparse_super2, the two groups that have a copy of the superblock, or 0."""
    backup_group_2: Annotated[int, u32(0x250)]
    checksum_seed: Annotated[int, u32(0x270)]
    checksum: Annotated[int, u32(0x3FC)] = 0
    """As it was read; `pack` computes it."""

    @property
    def block_size(self) -> int:
        """Bytes in a block."""
        return 1024 << self.log_block_size

    @property
    def group_count(self) -> int:
        """How many block groups there are."""
        return -(-(self.blocks_count - self.first_data_block) // self.blocks_per_group)

    @property
    def descriptor_size(self) -> int:
        """Bytes in a group descriptor."""
        return self.desc_size if self.feature_incompat & Incompat.BIT64 else 32

    @property
    def features(self) -> list[str]:
        """The names of all features, in the order of dumpe2fs(8)."""
        return [
            *feature_names(Compat, self.feature_compat),
            *feature_names(Incompat, self.feature_incompat),
            *feature_names(RoCompat, self.feature_ro_compat),
        ]

    @property
    def seed(self) -> int:
        """The seed of all checksums but its own."""
        if self.feature_incompat & Incompat.CSUM_SEED:
            return self.checksum_seed
        return filesystem_seed(self.uuid)

    def pack(self) -> bytes:
        """1024 bytes, with their checksum."""
        packed = bytearray(_SUPERBLOCK.pack(self))
        _SUPERBLOCK.setter("checksum")(packed, superblock_checksum(packed))
        return bytes(packed)

    @classmethod
    def unpack(cls, data: bytes) -> "Superblock":
        """The superblock in these 1024 bytes. Nothing is checked."""
        superblock = _SUPERBLOCK.unpack_from(data)
        if superblock.feature_incompat & Incompat.BIT64:
            return superblock
        return superblock._replace(
            blocks_count=superblock.blocks_count & _LOW_32_BITS,
            reserved_blocks_count=superblock.reserved_blocks_count & _LOW_32_BITS,
            free_blocks_count=superblock.free_blocks_count & _LOW_32_BITS,
        )


def superblock_checksum(data: bytes | bytearray) -> int:
    """The checksum of a superblock in 1024 bytes, which are all before the field for it."""
    [field] = _SUPERBLOCK.slots["checksum"]
    return checksum(SUPERBLOCK_SEED, data[: field.offset])


_SUPERBLOCK = Layout(Superblock, size=SUPERBLOCK_SIZE)


class GroupDescriptor(NamedTuple):
    """struct ext4_group_desc, with its upper halves (64bit)."""

    block_bitmap: Annotated[int, u32(0x0), u32(0x20)]
    """The block that it is in."""
    inode_bitmap: Annotated[int, u32(0x4), u32(0x24)]
    """The block that it is in."""
    inode_table: Annotated[int, u32(0x8), u32(0x28)]
    """The first block of it."""
    free_blocks_count: Annotated[int, u16(0xC), u16(0x2C)]
    free_inodes_count: Annotated[int, u16(0xE), u16(0x2E)]
    used_dirs_count: Annotated[int, u16(0x10), u16(0x30)]
    flags: Annotated[int, u16(0x12)]
    block_bitmap_csum: Annotated[int, u16(0x18), u16(0x38)]
    inode_bitmap_csum: Annotated[int, u16(0x1A), u16(0x3A)]
    itable_unused: Annotated[int, u16(0x1C), u16(0x32)]
    """Inodes at the end of the table that were never used."""
    checksum: Annotated[int, u16(0x1E)] = 0
    """As it was read; `pack` computes it."""

    def pack(self, group: int, seed: int) -> bytes:
        """64 bytes, with their checksum; ``seed`` is that of the filesystem."""
        packed = bytearray(_DESCRIPTOR.pack(self))
        _put_descriptor_checksum(packed, descriptor_checksum(group, packed, seed))
        return bytes(packed)

    @classmethod
    def unpack(cls, data: bytes) -> "GroupDescriptor":
        """The descriptor in 64 bytes, or 32 without the feature 64bit. Nothing is checked."""
        return _DESCRIPTOR.unpack_from(data.ljust(DESCRIPTOR_SIZE, b"\0"))


def descriptor_checksum(group: int, data: bytes | bytearray, seed: int) -> int:
    """The checksum of a group descriptor of any size (metadata_csum)."""
    zeroed = bytearray(data)
    _put_descriptor_checksum(zeroed, 0)
    return checksum(seed, _U32.pack(group) + zeroed) & 0xFFFF


def old_descriptor_checksum(group: int, data: bytes, uuid: bytes) -> int:
    """The checksum of a group descriptor without metadata_csum (uninit_bg): CRC-16/MODBUS."""
    [field] = _DESCRIPTOR.slots["checksum"]
    total = 0xFFFF
    for byte in uuid + _U32.pack(group) + data[: field.offset] + data[field.slice.stop :]:
        total ^= byte
        for _ in range(8):
            total = total >> 1 ^ (0xA001 if total & 1 else 0)
    return total


_DESCRIPTOR = Layout(GroupDescriptor, size=DESCRIPTOR_SIZE)
_put_descriptor_checksum = _DESCRIPTOR.setter("checksum")
_U32 = Struct("<I")
ZEROED = 4
"""A flag of a group: the unused part of its inode table holds zeros."""


class InodeFlag:
    """Flags of an inode that say how its content is kept.

    Plain numbers, for each inode is tested for several of them.
    """

    IMMUTABLE = 0x10
    APPEND = 0x20
    ENCRYPT = 0x800
    INDEX = 0x1000
    HUGE_FILE = 0x40000
    EXTENTS = 0x80000
    EA_INODE = 0x200000
    INLINE_DATA = 0x10000000
    CASEFOLD = 0x40000000


OLD_INODE_SIZE = 128
"""Bytes of an inode of ext2: the fields that all inodes have."""
EXTRA_ISIZE = 32
"""Bytes of the fields behind these."""
XATTR_SPACE = INODE_SIZE - OLD_INODE_SIZE - EXTRA_ISIZE
"""Bytes of an inode that its extended attributes can take."""


class Inode(msgspec.Struct):
    """struct ext4_inode, and the extended attributes behind it.

    Times are as they are stored, see `pack_time`. Fields that mostly are 0 come last.
    """

    mode: Annotated[int, u16(0x0)]
    """With the S_IFMT bits."""
    uid: Annotated[int, u16(0x2), u16(0x78)]
    size: Annotated[int, u32(0x4), u32(0x6C)]
    atime: Annotated[int, u32(0x8), u32(0x8C)]
    ctime: Annotated[int, u32(0xC), u32(0x84)]
    mtime: Annotated[int, u32(0x10), u32(0x88)]
    gid: Annotated[int, u16(0x18), u16(0x7A)]
    links: Annotated[int, u16(0x1A)]
    sectors: Annotated[int, u32(0x1C), u16(0x74)]
    """Units of 512 bytes (or blocks, with `InodeFlag.HUGE_FILE`) in use, metadata included."""
    flags: Annotated[int, u32(0x20)]
    block: Annotated[bytes, octets(0x28, INODE_BLOCK_SIZE)]
    """The root of the extent tree, the target of a short symlink, or a device number."""
    file_acl: Annotated[int, u32(0x68), u16(0x76)]
    """The block with more extended attributes, or 0."""
    crtime: Annotated[int, u32(0x90), u32(0x94)]
    dtime: Annotated[int, u32(0x14)] = 0
    """When it was deleted, in seconds since 1970."""
    generation: Annotated[int, u32(0x64)] = 0
    checksum: Annotated[int, u16(0x7C), u16(0x82)] = 0
    """As it was read; `pack` computes it."""
    extra_isize: Annotated[int, u16(0x80)] = EXTRA_ISIZE
    """Bytes of the fields from this one on."""
    xattrs: bytes = b""
    """All bytes behind the fields."""

    def pack(self, number: int, seed: int) -> bytes:
        """256 bytes, with their checksum; ``seed`` is that of the filesystem."""
        packed = bytearray(INODE.pack(self))
        if self.checksum:
            _put_inode_checksum(packed, 0)
        packed += self.xattrs.ljust(XATTR_SPACE, b"\0")
        total = checksum(inode_seed(seed, number, self.generation), packed)
        _put_inode_checksum(packed, total)
        return bytes(packed)

    @classmethod
    def unpack(cls, data: bytes) -> "Inode":
        """The inode in these 128 or more bytes. Nothing is checked."""
        # There may be fewer extra fields. Extended attributes follow the last one.
        end = OLD_INODE_SIZE + int.from_bytes(data[_EXTRA_ISIZE_BYTES], "little")
        whole = data if end >= INODE.size <= len(data) else data[:end].ljust(INODE.size, b"\0")
        inode = INODE.unpack_from(whole)
        if inode.extra_isize:
            inode.xattrs = data[end:]
        return inode


INODE = Layout(Inode, size=OLD_INODE_SIZE + EXTRA_ISIZE)
_put_inode_checksum = INODE.setter("checksum")
_EXTRA_ISIZE_BYTES = INODE.slots["extra_isize"][0].slice
_BLOCK_BYTES = INODE.slots["block"][0].slice


@lru_cache(maxsize=4096)
def around_block(
    mode: int, uid: int, gid: int, time_ns: int, links: int, flags: int
) -> tuple[bytes, bytes]:
    """An inode's bytes before and behind the field ``block``.

    Most inodes of an image share them: size, sectors, checksum, and where there are extended
    attributes are 0. ``mode`` has the S_IFMT bits, ``time_ns`` is in nanoseconds since 1970.
    """
    time = pack_time(time_ns)
    inode = Inode(
        mode=mode,
        uid=uid,
        size=0,
        atime=time,
        ctime=time,
        mtime=time,
        gid=gid,
        links=links,
        sectors=0,
        flags=flags,
        block=b"",
        file_acl=0,
        crtime=time,
    )
    packed = INODE.pack(inode) + bytes(XATTR_SPACE)
    return packed[: _BLOCK_BYTES.start], packed[_BLOCK_BYTES.stop :]


def put_inode_checksums(table: bytearray, first: int, seed: int) -> None:
    """Set the checksums of inodes of which the first one has that number, and generation 0.

    ``seed`` is that of the filesystem.
    """
    start = seed ^ _LOW_32_BITS
    pack = _NUMBER_AND_GENERATION.pack
    # `checksum` of `inode_seed`, without inverting twice what is in between.
    with memoryview(table) as view:
        totals = [
            crc32c(view[at : at + INODE_SIZE], crc32c(pack(number, 0), start)) ^ _LOW_32_BITS
            for number, at in enumerate(range(0, len(table), INODE_SIZE), first)
        ]
    INODE.fill("checksum", table, INODE_SIZE, totals)


MIN_SECONDS, MAX_SECONDS = -(1 << 31), (1 << 34) - (1 << 31) - 1
"""Times from 1901 to 2446. The kernel too moves others to the nearest of these."""


@lru_cache(maxsize=1024)
def pack_time(time_ns: int) -> int:
    """Nanoseconds since 1970 as an inode stores them.

    From the lowest bit: 32 bits of the seconds, two more bits of them, 30 bits of nanoseconds.
    """
    seconds, nanoseconds = divmod(time_ns, NANOSECONDS)
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        seconds, nanoseconds = min(max(seconds, MIN_SECONDS), MAX_SECONDS), 0
    # The kernel adds the two bits to the lower 32, which it takes as signed.
    epoch = (seconds + (1 << 31)) >> 32
    return seconds & _LOW_32_BITS | epoch << 32 | nanoseconds << 34


@lru_cache(maxsize=1024)
def unpack_time(stored: int) -> int:
    """Nanoseconds since 1970, from the form that `pack_time` gives."""
    seconds = (stored & 0x7FFFFFFF) - (stored & 0x80000000) + (stored & 3 << 32)
    return seconds * NANOSECONDS + (stored >> 34)


EXTENT_MAGIC = 0xF30A


class ExtentHeader(NamedTuple):
    """struct ext4_extent_header, the beginning of each node of an extent tree."""

    magic: Annotated[int, u16(0x0)]
    entries: Annotated[int, u16(0x2)]
    max: Annotated[int, u16(0x4)]
    """Entries that there is room for."""
    depth: Annotated[int, u16(0x6)]
    """Levels below this one; 0 in a leaf."""


class Extent(NamedTuple):
    """struct ext4_extent: blocks of a file that follow each other on disk."""

    logical: Annotated[int, u32(0x0)]
    """The first of them, counted from the beginning of the file."""
    length: Annotated[int, u16(0x4)]
    """How many they are."""
    physical: Annotated[int, u32(0x8), u16(0x6)]
    """The first of them, counted from the beginning of the filesystem."""


class ExtentIndex(NamedTuple):
    """struct ext4_extent_idx: a node of the next level of an extent tree."""

    logical: Annotated[int, u32(0x0)]
    """The first block of the file that it leads to."""
    leaf: Annotated[int, u32(0x4), u16(0x8)]
    """The block on disk with the node."""


EXTENT_HEADER = Layout(ExtentHeader, size=12)
EXTENT = Layout(Extent, size=12)
EXTENT_INDEX = Layout(ExtentIndex, size=12)
CHECKSUM_SIZE = 4
"""Bytes of the checksum behind the entries of a node in a block."""
EXTENTS_IN_INODE = 4
EXTENTS_PER_BLOCK = (BLOCK_SIZE - EXTENT_HEADER.size - CHECKSUM_SIZE) // EXTENT.size
MAX_EXTENT = 1 << 15
"""Blocks in one extent. A larger length means an unwritten one, `MAX_EXTENT` blocks shorter."""
MAX_NEW_EXTENT = MAX_EXTENT - 1
"""Blocks in one extent that is written. Some readers take the top bit for "unwritten"."""


def pack_extents(
    extents: Sequence[Extent], tree_blocks: Sequence[int], seed: int
) -> tuple[bytes, list[bytes]]:
    """The root of an extent tree, 60 bytes for the inode, and the contents of ``tree_blocks``.

    These are the blocks for its other nodes, as many as `extent_tree_blocks` says. ``seed`` is the
    `inode_seed`.
    """
    entries = list(map(EXTENT.pack, extents))
    firsts = [extent.logical for extent in extents] if tree_blocks else []
    blocks: list[bytes] = []
    depth = 0
    while len(entries) > EXTENTS_IN_INODE:
        positions = tree_blocks[len(blocks) :]
        for start in range(0, len(entries), EXTENTS_PER_BLOCK):
            node = _node(entries[start : start + EXTENTS_PER_BLOCK], EXTENTS_PER_BLOCK, depth)
            node = node.ljust(BLOCK_SIZE - CHECKSUM_SIZE, b"\0")
            blocks.append(node + checksum(seed, node).to_bytes(CHECKSUM_SIZE, "little"))
        firsts = firsts[::EXTENTS_PER_BLOCK]
        entries = list(map(EXTENT_INDEX.pack, map(ExtentIndex, firsts, positions)))
        depth += 1
    return _node(entries, EXTENTS_IN_INODE, depth).ljust(INODE_BLOCK_SIZE, b"\0"), blocks


class OneExtent(NamedTuple):
    """The root of an extent tree, in an inode, with one extent: an `ExtentHeader`, an `Extent`."""

    magic: Annotated[int, u16(0x0)]
    entries: Annotated[int, u16(0x2)]
    max: Annotated[int, u16(0x4)]
    logical: Annotated[int, u32(0xC)]
    length: Annotated[int, u16(0x10)]
    physical: Annotated[int, u32(0x14), u16(0x12)]


_ONE_EXTENT = Layout(OneExtent, size=INODE_BLOCK_SIZE)


def pack_extent(length: int, physical: int) -> bytes:
    """The root of the extent tree of a content that is in one piece on disk."""
    return _ONE_EXTENT.pack_fields(EXTENT_MAGIC, 1, EXTENTS_IN_INODE, 0, length, physical)


def _node(entries: Sequence[bytes], room: int, depth: int) -> bytes:
    """A node of an extent tree, up to its last entry."""
    header = _extent_header(len(entries), room, depth)
    return header + b"".join(entries)


@lru_cache
def _extent_header(entries: int, room: int, depth: int) -> bytes:
    return EXTENT_HEADER.pack(ExtentHeader(EXTENT_MAGIC, entries, room, depth))


def extent_tree_blocks(extents: int) -> int:
    """Blocks that a tree with so many extents takes, beside its root in the inode."""
    blocks = 0
    while extents > EXTENTS_IN_INODE:
        extents = -(-extents // EXTENTS_PER_BLOCK)
        blocks += extents
    return blocks


class DeviceNumber(NamedTuple):
    """The field ``block`` of the inode of a device. One of the two is 0."""

    old: Annotated[int, u32(0x0)]
    """8 bits each for the major and the minor number."""
    new: Annotated[int, u32(0x4)]
    """As `encode_device` returns it."""


_DEVICE_NUMBER = Layout(DeviceNumber, size=INODE_BLOCK_SIZE)


def pack_device(major: int, minor: int) -> bytes:
    """A device number as the 60 bytes of its inode's field ``block``."""
    if major < 256 and minor < 256:
        return _DEVICE_NUMBER.pack(DeviceNumber(old=major << 8 | minor, new=0))
    return _DEVICE_NUMBER.pack(DeviceNumber(old=0, new=encode_device(major, minor)))


def unpack_device(block: bytes) -> tuple[int, int]:
    """The major and minor number in an inode's field ``block``."""
    old, new = _DEVICE_NUMBER.unpack_from(block)
    if old:
        return old >> 8 & 0xFF, old & 0xFF
    return decode_device(new)


class JournalSuperblock(NamedTuple):
    """struct journal_superblock_s, in the first block of a journal."""

    magic: Annotated[int, u32(0x0)]
    blocktype: Annotated[int, u32(0x4)]
    blocksize: Annotated[int, u32(0xC)]
    maxlen: Annotated[int, u32(0x10)]
    """Blocks in the journal."""
    first: Annotated[int, u32(0x14)]
    """The first block for transactions."""
    sequence: Annotated[int, u32(0x18)]
    """The number of the first transaction."""
    start: Annotated[int, u32(0x1C)]
    """The block that it is in, or 0 if the journal is empty."""
    uuid: Annotated[bytes, octets(0x30, 16)]
    nr_users: Annotated[int, u32(0x40)]


_JOURNAL_SUPERBLOCK = Layout(JournalSuperblock, size=BLOCK_SIZE, order="big")
JOURNAL_MAGIC = 0xC03B3998
JOURNAL_SUPERBLOCK_V2 = 4


def pack_journal(blocks: int, uuid: bytes) -> bytes:
    """The first block of an empty journal of that many; the others are zeros."""
    return _JOURNAL_SUPERBLOCK.pack(
        JournalSuperblock(
            magic=JOURNAL_MAGIC,
            blocktype=JOURNAL_SUPERBLOCK_V2,
            blocksize=BLOCK_SIZE,
            maxlen=blocks,
            first=1,
            sequence=1,
            start=0,
            uuid=uuid,
            nr_users=1,
        )
    )


def has_superblock(group: int) -> bool:
    """Whether a group has a copy of the superblock (sparse_super): 0, 1, powers of 3, 5 and 7."""
    if group <= 1:
        return True
    for base in (3, 5, 7):
        power = base
        while power < group:
            power *= base
        if power == group:
            return True
    return False
