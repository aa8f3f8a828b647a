"""The on-disk structures of ext4: what a field is, and where.

Names and offsets are those of Documentation/filesystems/ext4 in the kernel's sources, without
their prefixes. Numbers are little-endian, but for the journal's. Fields that fledge neither
writes nor reads are padding here.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntFlag
from functools import lru_cache
from struct import Struct
from typing import NamedTuple

import msgspec
from crc32c import crc32c

from fledge.tree import NANOSECONDS

BLOCK_SIZE = 4096
"""Bytes in a block of what fledge writes."""
LOG_BLOCK_SIZE = 2
"""In a superblock: of 1024 shifted left."""
SECTOR_SIZE = 512
"""What an inode counts its blocks in."""

SUPERBLOCK_OFFSET = 1024
SUPERBLOCK_SIZE = 1024
BLOCKS_PER_GROUP = 8 * BLOCK_SIZE
"""As many as the bits of one block can tell of."""
DESCRIPTOR_SIZE = 64
DESCRIPTORS_PER_BLOCK = BLOCK_SIZE // DESCRIPTOR_SIZE
INODE_SIZE = 256
INODES_PER_BLOCK = BLOCK_SIZE // INODE_SIZE
MAX_INODES_PER_GROUP = 8 * BLOCK_SIZE

ROOT = 2
RESIZE = 7
JOURNAL = 8
LOST_AND_FOUND = 11
"""The first inode that is not reserved."""

DIRECT_BLOCKS = 12
"""Pointers of an inode without extents that lead to blocks of the file itself."""
INODE_BLOCK_SIZE = 60
"""Bytes of i_block. A symlink whose target is shorter is in there."""

MAGIC = 0xEF53
DYNAMIC_REVISION = 1
CLEAN = 1
CONTINUE_ON_ERRORS = 1
NEVER = 0xFFFF
"""Mounts after which a check is due."""
HALF_MD4 = 1
CRC32C = 1
UNSIGNED_HASH = 2
"""A superblock flag: directory hashes take the bytes of a name as unsigned."""
XATTRS_AND_ACLS = 0xC
"""Default mount options: user_xattr and acl."""
JOURNAL_BACKUP = 1
"""The superblock repeats the journal's inode."""


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
"""Features that e2fsprogs call by another name than the kernel."""


def feature_names(kind: type[IntFlag], bits: int) -> list[str]:
    """What dumpe2fs(8) calls the features in ``bits``, which are of one of the three kinds."""
    known = {
        flag.value: _FEATURE_NAMES.get(name, name.lower())
        for name, flag in kind.__members__.items()
    }
    unknown = f"FEATURE_{kind.__name__[0]}"
    return [known.get(1 << bit, f"{unknown}{bit}") for bit in range(32) if bits >> bit & 1]


COMPAT = Compat.HAS_JOURNAL | Compat.EXT_ATTR | Compat.RESIZE_INODE | Compat.DIR_INDEX
INCOMPAT = Incompat.FILETYPE | Incompat.EXTENTS | Incompat.BIT64 | Incompat.FLEX_BG
RO_COMPAT = (
    RoCompat.SPARSE_SUPER
    | RoCompat.LARGE_FILE
    | RoCompat.HUGE_FILE
    | RoCompat.DIR_NLINK
    | RoCompat.EXTRA_ISIZE
    | RoCompat.METADATA_CSUM
)


class Damage(Exception):
    """What is wrong with a structure that was read. The caller knows whose it is."""


def checksum(seed: int, data: bytes | bytearray) -> int:
    """ext4's CRC-32C, which goes on from ``seed`` and inverts nothing."""
    return crc32c(data, seed ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def filesystem_seed(uuid: bytes) -> int:
    """What all checksums but the superblock's begin with."""
    return checksum(0xFFFFFFFF, uuid)


def inode_seed(seed: int, number: int, generation: int = 0) -> int:
    """What the checksums of an inode, its extents and its directory blocks begin with."""
    return checksum(seed, _INODE_SEED.pack(number, generation))


_INODE_SEED = Struct("<II")


class Superblock(NamedTuple):
    """struct ext4_super_block, up to s_checksum_seed."""

    inodes_count: int
    blocks_count: int
    reserved_blocks_count: int
    free_blocks_count: int
    free_inodes_count: int
    first_data_block: int
    log_block_size: int
    log_cluster_size: int
    blocks_per_group: int
    clusters_per_group: int
    inodes_per_group: int
    mtime: int
    wtime: int
    mnt_count: int
    max_mnt_count: int
    magic: int
    state: int
    errors: int
    lastcheck: int
    rev_level: int
    first_ino: int
    inode_size: int
    block_group_nr: int
    feature_compat: int
    feature_incompat: int
    feature_ro_compat: int
    uuid: bytes
    volume_name: bytes
    last_mounted: bytes
    reserved_gdt_blocks: int
    journal_inum: int
    last_orphan: int
    hash_seed: bytes
    def_hash_version: int
    jnl_backup_type: int
    desc_size: int
    default_mount_opts: int
    first_meta_bg: int
    mkfs_time: int
    jnl_blocks: bytes
    """i_block of the journal's inode, then the high and the low half of its size."""
    min_extra_isize: int
    want_extra_isize: int
    flags: int
    log_groups_per_flex: int
    checksum_type: int
    kbytes_written: int
    overhead_clusters: int
    checksum_seed: int

    @property
    def block_size(self) -> int:
        """Bytes."""
        return 1024 << self.log_block_size

    @property
    def group_count(self) -> int:
        return -(-(self.blocks_count - self.first_data_block) // self.blocks_per_group)

    @property
    def descriptor_size(self) -> int:
        """Bytes."""
        return self.desc_size if self.feature_incompat & Incompat.BIT64 else 32

    @property
    def features(self) -> list[str]:
        """Their names in the order of dumpe2fs(8)."""
        return [
            *feature_names(Compat, self.feature_compat),
            *feature_names(Incompat, self.feature_incompat),
            *feature_names(RoCompat, self.feature_ro_compat),
        ]

    @property
    def seed(self) -> int:
        """What all checksums but its own begin with."""
        if self.feature_incompat & Incompat.CSUM_SEED:
            return self.checksum_seed
        return filesystem_seed(self.uuid)

    def pack(self) -> bytes:
        """1024 bytes, with their checksum."""
        halves = [divmod(count, 1 << 32) for count in self[1:4]]
        (blocks_hi, blocks), (reserved_hi, reserved), (free_hi, free) = halves
        low = _SUPERBLOCK_LOW.pack(self[0], blocks, reserved, free, *self[4:40])
        counts = _HIGH_COUNTS.pack(blocks_hi, reserved_hi, free_hi)
        high = _SUPERBLOCK_HIGH.pack(*self[40:])
        return (data := low + counts + high) + _U32.pack(checksum(0xFFFFFFFF, data))

    @classmethod
    def unpack(cls, data: bytes) -> Superblock:
        """From 1024 bytes, unchecked."""
        low = _SUPERBLOCK_LOW.unpack_from(data)
        high = _SUPERBLOCK_HIGH.unpack_from(data, _SUPERBLOCK_LOW.size + _HIGH_COUNTS.size)
        superblock = cls(*low, *high)
        if not superblock.feature_incompat & Incompat.BIT64:
            return superblock
        counts = _HIGH_COUNTS.unpack_from(data, _SUPERBLOCK_LOW.size)
        blocks, reserved, free = (
            high << 32 | low for high, low in zip(counts, superblock[1:4], strict=True)
        )
        return superblock._replace(
            blocks_count=blocks, reserved_blocks_count=reserved, free_blocks_count=free
        )


_U32 = Struct("<I")
_SUPERBLOCK_LOW = Struct("<13I 5H 2xI 8xI 4xI HH3I 16s16s64s 6xH 16xI4xI 16sBBHIII 68s")
_HIGH_COUNTS = Struct("<3I")
_SUPERBLOCK_HIGH = Struct("<HHI 16xBB2xQ 200xI 36xI 392x")


class GroupDescriptor(NamedTuple):
    """struct ext4_group_desc of 64 bytes; positions are block numbers."""

    block_bitmap: int
    inode_bitmap: int
    inode_table: int
    free_blocks_count: int
    free_inodes_count: int
    used_dirs_count: int
    flags: int
    block_bitmap_csum: int
    inode_bitmap_csum: int
    itable_unused: int
    """Inodes at the end of the table that were never used."""

    def pack(self, group: int, seed: int) -> bytes:
        """64 bytes, with their checksum."""
        positions = [divmod(block, 1 << 32) for block in self[:3]]
        counts = [divmod(count, 1 << 16) for count in self[3:6]]
        block_csum, inode_csum, unused = (divmod(field, 1 << 16) for field in self[7:])
        low = _DESCRIPTOR_LOW.pack(
            *(low for _, low in positions),
            *(low for _, low in counts),
            self.flags,
            *(block_csum[1], inode_csum[1], unused[1]),
        )
        high = _DESCRIPTOR_HIGH.pack(
            *(high for high, _ in positions),
            *(high for high, _ in counts),
            *(unused[0], block_csum[0], inode_csum[0]),
        )
        total = checksum(checksum(seed, _U32.pack(group)), low + bytes(2) + high)
        return low + _U16.pack(total & 0xFFFF) + high

    @classmethod
    def unpack(cls, data: bytes) -> GroupDescriptor:
        """From 64 bytes, or from the 32 of a filesystem without 64bit; unchecked."""
        low = _DESCRIPTOR_LOW.unpack_from(data)
        size = _DESCRIPTOR_LOW.size + _U16.size
        high = _DESCRIPTOR_HIGH.unpack_from(data.ljust(DESCRIPTOR_SIZE, b"\0"), size)
        positions = [high << 32 | low for high, low in zip(high[:3], low[:3], strict=True)]
        counts = [high << 16 | low for high, low in zip(high[3:6], low[3:6], strict=True)]
        csums = [high << 16 | low for high, low in zip(high[7:], low[7:9], strict=True)]
        return cls._make([*positions, *counts, low[6], *csums, high[6] << 16 | low[9]])


_U16 = Struct("<H")
_DESCRIPTOR_LOW = Struct("<3I 4H 4x HHH")
_DESCRIPTOR_HIGH = Struct("<3I 3H H 4x HH 4x")
ZEROED = 4
"""A flag of a group: what is unused of its inode table holds zeros."""


class InodeFlag(IntFlag):
    """Flags of an inode that say how its content is kept."""

    IMMUTABLE = 0x10
    APPEND = 0x20
    ENCRYPT = 0x800
    INDEX = 0x1000
    HUGE_FILE = 0x40000
    EXTENTS = 0x80000
    EA_INODE = 0x200000
    INLINE_DATA = 0x10000000
    CASEFOLD = 0x40000000


class Inode(msgspec.Struct):
    """struct ext4_inode and, behind it, extended attributes."""

    mode: int
    """With the S_IFMT bits."""
    uid: int
    gid: int
    size: int
    links: int
    sectors: int
    """Units of 512 bytes (or blocks, with `InodeFlag.HUGE_FILE`) in use, metadata included."""
    flags: int
    block: bytes
    """60 bytes: the root of the extent tree, a short symlink, or a device number."""
    file_acl: int
    """The block with more extended attributes, or 0."""
    atime: int
    """Times are nanoseconds since 1970."""
    ctime: int
    mtime: int
    crtime: int
    xattrs: bytes = b""
    """What follows the fields."""
    dtime: int = 0
    generation: int = 0

    def pack(self, number: int, seed: int) -> bytes:
        """256 bytes, with their checksum."""
        ctime, ctime_extra = pack_time(self.ctime)
        mtime, mtime_extra = pack_time(self.mtime)
        atime, atime_extra = pack_time(self.atime)
        crtime, crtime_extra = pack_time(self.crtime)
        fields = bytearray(
            _INODE.pack(
                self.mode,
                self.uid & 0xFFFF,
                self.size & 0xFFFFFFFF,
                atime,
                ctime,
                mtime,
                self.dtime,
                self.gid & 0xFFFF,
                self.links,
                self.sectors & 0xFFFFFFFF,
                self.flags,
                self.block,
                self.generation,
                self.file_acl & 0xFFFFFFFF,
                self.size >> 32,
                self.sectors >> 32,
                self.file_acl >> 32,
                self.uid >> 16,
                self.gid >> 16,
                0,
                EXTRA_ISIZE,
                0,
                ctime_extra,
                mtime_extra,
                atime_extra,
                crtime,
                crtime_extra,
            )
        )
        fields += self.xattrs.ljust(XATTR_SPACE, b"\0")
        total = checksum(inode_seed(seed, number, self.generation), fields)
        _U16.pack_into(fields, INODE_CHECKSUM_LOW, total & 0xFFFF)
        _U16.pack_into(fields, INODE_CHECKSUM_HIGH, total >> 16)
        return bytes(fields)

    @classmethod
    def unpack(cls, data: bytes) -> Inode:
        """From the bytes of an inode of any size from 128, unchecked."""
        (extra_isize,) = _U16.unpack_from(data.ljust(_INODE.size, b"\0"), OLD_INODE_SIZE)
        # What lies behind the extra fields that there are belongs to extended attributes.
        known = data[: OLD_INODE_SIZE + extra_isize].ljust(_INODE.size, b"\0")
        fields = _INODE.unpack_from(known)
        mode, uid, size, atime, ctime, mtime, dtime, gid, links, sectors, flags, block = fields[:12]
        generation, acl, size_hi, sectors_hi, acl_hi, uid_hi, gid_hi = fields[12:19]
        ctime_extra, mtime_extra, atime_extra, crtime, crtime_extra = fields[22:]
        return cls(
            mode=mode,
            uid=uid_hi << 16 | uid,
            gid=gid_hi << 16 | gid,
            size=size_hi << 32 | size,
            links=links,
            sectors=sectors_hi << 32 | sectors,
            flags=flags,
            block=block,
            file_acl=acl_hi << 32 | acl,
            atime=unpack_time(atime, atime_extra),
            ctime=unpack_time(ctime, ctime_extra),
            mtime=unpack_time(mtime, mtime_extra),
            crtime=unpack_time(crtime, crtime_extra),
            xattrs=data[OLD_INODE_SIZE + extra_isize :] if extra_isize else b"",
            dtime=dtime,
            generation=generation,
        )


_INODE = Struct("<HHI 4I HHII 4x 60s III 4x HHHHH 2x HH 5I 8x")
OLD_INODE_SIZE = 128
EXTRA_ISIZE = _INODE.size - OLD_INODE_SIZE
XATTR_SPACE = INODE_SIZE - _INODE.size
"""Bytes of an inode that its extended attributes can have."""
INODE_CHECKSUM_LOW = 124
INODE_CHECKSUM_HIGH = 130

MIN_SECONDS, MAX_SECONDS = -(1 << 31), (1 << 34) - (1 << 31) - 1
"""Times from 1901 to 2446; the kernel too moves others to the nearest of these."""


@lru_cache(maxsize=1024)
def pack_time(time_ns: int) -> tuple[int, int]:
    """The low 32 bits of the seconds, and the nanoseconds with two more bits of them."""
    seconds, nanoseconds = divmod(time_ns, NANOSECONDS)
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        seconds, nanoseconds = min(max(seconds, MIN_SECONDS), MAX_SECONDS), 0
    # The kernel adds these two bits to the sign-extended low half.
    return seconds & 0xFFFFFFFF, nanoseconds << 2 | (seconds + (1 << 31)) >> 32


def unpack_time(low: int, extra: int) -> int:
    """Nanoseconds since 1970."""
    seconds = low - ((low & 0x80000000) << 1) + ((extra & 3) << 32)
    return seconds * NANOSECONDS + (extra >> 2)


EXTENT_MAGIC = 0xF30A
EXTENT_HEADER = Struct("<HHHHI")
"""Magic, entries, how many there is room for, depth, generation."""
EXTENT = Struct("<IHHI")
"""First logical block, length, high and low half of the first physical block."""
EXTENT_INDEX = Struct("<IIH2x")
"""First logical block, low and high half of the block one level down."""
EXTENTS_IN_INODE = 4
EXTENTS_PER_BLOCK = (BLOCK_SIZE - EXTENT_HEADER.size - 4) // EXTENT.size
MAX_EXTENT = 1 << 15
"""Blocks in one extent; longer ones are unwritten and `MAX_EXTENT` too long."""


class Extent(NamedTuple):
    """Blocks of a file that follow each other on disk."""

    logical: int
    physical: int
    length: int


def pack_extents(
    extents: Sequence[Extent], tree_blocks: Sequence[int], seed: int
) -> tuple[bytes, list[bytes]]:
    """The root of an extent tree, 60 bytes for the inode, and what goes into ``tree_blocks``.

    There must be `extent_tree_blocks` of them; ``seed`` is the `inode_seed`.
    """
    entries = [
        EXTENT.pack(logical, length, physical >> 32, physical & _LOW)
        for logical, physical, length in extents
    ]
    firsts = [extent.logical for extent in extents] if tree_blocks else []
    blocks: list[bytes] = []
    depth = 0
    while len(entries) > EXTENTS_IN_INODE:
        level = range(0, len(entries), EXTENTS_PER_BLOCK)
        positions = tree_blocks[len(blocks) :]
        for start in level:
            some = entries[start : start + EXTENTS_PER_BLOCK]
            header = EXTENT_HEADER.pack(EXTENT_MAGIC, len(some), EXTENTS_PER_BLOCK, depth, 0)
            data = (header + b"".join(some)).ljust(BLOCK_SIZE - 4, b"\0")
            blocks.append(data + _U32.pack(checksum(seed, data)))
        firsts = firsts[::EXTENTS_PER_BLOCK]
        entries = [
            EXTENT_INDEX.pack(first, block & _LOW, block >> 32)
            for first, block in zip(firsts, positions, strict=False)
        ]
        depth += 1
    header = EXTENT_HEADER.pack(EXTENT_MAGIC, len(entries), EXTENTS_IN_INODE, depth, 0)
    return (header + b"".join(entries)).ljust(INODE_BLOCK_SIZE, b"\0"), blocks


_LOW = 0xFFFFFFFF


def extent_tree_blocks(extents: int) -> int:
    """Blocks that the tree over so many extents needs beside its root in the inode."""
    blocks = 0
    while extents > EXTENTS_IN_INODE:
        extents = -(-extents // EXTENTS_PER_BLOCK)
        blocks += extents
    return blocks


def pack_device(major: int, minor: int) -> bytes:
    """A device number in the 60 bytes of its inode: the old or the new encoding."""
    if major < 256 and minor < 256:
        return _U32.pack(major << 8 | minor).ljust(INODE_BLOCK_SIZE, b"\0")
    return (bytes(4) + _U32.pack(new_device(major, minor))).ljust(INODE_BLOCK_SIZE, b"\0")


def new_device(major: int, minor: int) -> int:
    """A device number in the kernel's new encoding (new_encode_dev)."""
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def unpack_device(block: bytes) -> tuple[int, int]:
    """Major and minor number."""
    old, new = _TWO_U32.unpack_from(block)
    if old:
        return old >> 8 & 0xFF, old & 0xFF
    return new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xFFF00


_TWO_U32 = Struct("<II")

JOURNAL_MAGIC = 0xC03B3998
JOURNAL_SUPERBLOCK_V2 = 4
_JOURNAL_SUPERBLOCK = Struct(">3I 5I 16x 16s I")


def pack_journal(blocks: int, uuid: bytes) -> bytes:
    """The first block of an empty journal of that many (struct journal_superblock_s)."""
    first, sequence, start = 1, 1, 0
    return _JOURNAL_SUPERBLOCK.pack(
        *(JOURNAL_MAGIC, JOURNAL_SUPERBLOCK_V2, 0),
        *(BLOCK_SIZE, blocks, first, sequence, start),
        uuid,
        1,
    ).ljust(BLOCK_SIZE, b"\0")


def has_superblock(group: int) -> bool:
    """Whether a group has a copy (sparse_super): 0, 1, and powers of 3, 5 and 7."""
    if group <= 1:
        return True
    for base in (3, 5, 7):
        power = base
        while power < group:
            power *= base
        if power == group:
            return True
    return False
