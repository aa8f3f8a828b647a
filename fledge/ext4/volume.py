"""An ext2, ext3 or ext4 image as inodes: the fields of each, and the blocks it has.

Documentation/filesystems/ext4 of the kernel, and what fs/ext4 does where that is silent.
Checksums are verified wherever the filesystem has them. Nothing outside of the image is ever
read, and whatever its bytes are, they cost bounded memory and time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from struct import Struct

from fledge.errors import CorruptError, FledgeError
from fledge.ext4.structures import (
    CRC32C,
    DESCRIPTOR_SIZE,
    DIRECT_BLOCKS,
    DYNAMIC_REVISION,
    EXTENT,
    EXTENT_HEADER,
    EXTENT_INDEX,
    EXTENT_MAGIC,
    INODE_CHECKSUM_HIGH,
    INODE_CHECKSUM_LOW,
    LOST_AND_FOUND,
    MAGIC,
    MAX_EXTENT,
    OLD_INODE_SIZE,
    SUPERBLOCK_OFFSET,
    SUPERBLOCK_SIZE,
    Compat,
    Damage,
    Extent,
    GroupDescriptor,
    Incompat,
    Inode,
    InodeFlag,
    RoCompat,
    Superblock,
    checksum,
    feature_names,
    has_superblock,
    inode_seed,
)

READABLE = (
    Incompat.FILETYPE
    | Incompat.META_BG
    | Incompat.EXTENTS
    | Incompat.BIT64
    | Incompat.MMP
    | Incompat.FLEX_BG
    | Incompat.EA_INODE
    | Incompat.CSUM_SEED
    | Incompat.LARGEDIR
    | Incompat.INLINE_DATA
    | Incompat.CASEFOLD
)
"""What else there is changes what bytes mean. Features of the other kinds do not."""

MAX_KEPT = 1 << 30
"""Bytes of memory, roughly, that an image may need: two million files. Large images have some
hundred thousand."""

EXTENT_COST = 200
"""What a run of blocks counts of `MAX_KEPT`."""
GROUP_COST = 512

MAX_LOG_BLOCK_SIZE = 6
MAX_DESCRIPTOR_SIZE = 1024
MAX_EXTENT_DEPTH = 5
MAX_BLOCKS_IN_FILE = 1 << 32

_BACKUP_GROUPS = 588
_SUPERBLOCK_CHECKSUM = SUPERBLOCK_SIZE - 4
_DESCRIPTOR_CHECKSUM = 30
_U16 = Struct("<H")
_U32 = Struct("<I")
_TWO_U32 = Struct("<II")
_FIRST_LOGICAL = Struct(f"<{EXTENT_HEADER.size}xI")
"""What both kinds of entries in an extent tree begin with."""


class Volume:
    """The filesystem in the image that ``descriptor`` has open; ``path`` is for messages.

    All that is not as it must be raises `Damage`, and what cannot be read `FledgeError`.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        data = os.pread(descriptor, SUPERBLOCK_SIZE, SUPERBLOCK_OFFSET)
        self.superblock = _superblock(data, os.lseek(descriptor, 0, os.SEEK_END), path)
        self.block_size = self.superblock.block_size
        self.has_checksums = bool(self.superblock.feature_ro_compat & RoCompat.METADATA_CSUM)
        self.seed = self.superblock.seed
        self._unused = self.superblock.blocks_count
        self._memory = MAX_KEPT
        self._inode_tables = self._read_inode_tables(_TWO_U32.unpack_from(data, _BACKUP_GROUPS))

    def charge(self, cost: int) -> None:
        """Count ``cost`` bytes of memory."""
        self._memory -= cost
        if self._memory < 0:
            raise Damage(f"there are more than {MAX_KEPT} bytes of metadata")

    def block(self, number: int) -> bytes:
        """A block of metadata, which is not counted yet as that of an inode."""
        self._use(1)
        self._check_range(number, 1)
        return self._read(number * self.block_size, self.block_size)

    def inode(self, number: int) -> Inode:
        """The inode of that number."""
        superblock = self.superblock
        if not 1 <= number <= superblock.inodes_count:
            raise Damage(f"there are only {superblock.inodes_count} inodes")
        group, index = divmod(number - 1, superblock.inodes_per_group)
        position = self._inode_tables[group] * self.block_size + index * superblock.inode_size
        data = self._read(position, superblock.inode_size)
        extra = _U16.unpack_from(data, OLD_INODE_SIZE)[0] if len(data) > OLD_INODE_SIZE else 0
        if extra % 4 or extra > superblock.inode_size - OLD_INODE_SIZE:
            raise Damage(f"{extra} is no size of its extra fields")
        inode = Inode.unpack(data)
        seed = inode_seed(self.seed, number, inode.generation)
        if self.has_checksums and not _is_intact_inode(data, seed, has_high=extra >= 4):
            raise Damage("its checksum is wrong")
        return inode

    def extents(self, number: int, inode: Inode) -> list[Extent]:
        """Where its blocks are, in order; what is missing reads as zeros."""
        if inode.size > MAX_BLOCKS_IN_FILE * self.block_size:
            raise Damage(f"{inode.size} bytes are too many for a file")
        if not inode.flags & InodeFlag.EXTENTS:
            return self._merged(self._mapped(inode.block, self._block_count(inode)))
        seed = inode_seed(self.seed, number, inode.generation)
        depth = EXTENT_HEADER.unpack_from(inode.block)[3]
        if depth > MAX_EXTENT_DEPTH:
            raise Damage("its extent tree is too deep")
        return self._merged(self._extents_below(inode.block, depth, seed))

    def blocks(self, number: int, inode: Inode) -> Iterator[bytes]:
        """All blocks of an inode that is metadata, and so has no holes."""
        count = self._block_count(inode)
        position = 0
        for extent in self.extents(number, inode):
            if extent.logical != position:
                break
            for block in range(extent.physical, extent.physical + extent.length):
                if position == count:
                    return
                yield self._read(block * self.block_size, self.block_size)
                position += 1
        if position < count:
            raise Damage(f"its block {position} is missing")

    def _use(self, blocks: int) -> None:
        """Count blocks that have a user. No two share one, which bounds all that is to be read."""
        self._unused -= blocks
        if self._unused < 0:
            raise Damage("more blocks are in use than there are")

    def _block_count(self, inode: Inode) -> int:
        return -(-inode.size // self.block_size)

    def _read(self, position: int, size: int) -> bytes:
        if position + size > self.superblock.blocks_count * self.block_size:
            raise Damage("it is beyond the end of the filesystem")
        data = os.pread(self._descriptor, size, position)
        if len(data) < size:
            raise Damage("the image is shorter than it was")
        return data

    def _check_range(self, block: int, length: int) -> None:
        if not self.superblock.first_data_block < block <= self.superblock.blocks_count - length:
            raise Damage(f"it uses block {block}, which no file can have")

    def _read_inode_tables(self, backups: tuple[int, ...]) -> list[int]:
        """The first block of the inodes of each group."""
        size = self.superblock.descriptor_size
        groups = range(self.superblock.group_count)
        per_block = self.block_size // size
        self.charge(len(groups) * GROUP_COST)
        tables: list[int] = []
        for start in groups[::per_block]:
            block = self.block(self._descriptors_at(start, per_block, backups))
            for group in groups[start : start + per_block]:
                data = block[group % per_block * size :][:size]
                if not self._is_intact_descriptor(group, data):
                    raise Damage(f"the checksum of the descriptor of group {group} is wrong")
                tables.append(GroupDescriptor.unpack(data).inode_table)
        return tables

    def _descriptors_at(self, group: int, per_block: int, backups: tuple[int, ...]) -> int:
        """The block of descriptors from that of ``group`` on.

        They follow the superblock, or with meta_bg its copy in the group, if it has one.
        """
        superblock = self.superblock
        index = group // per_block
        copy = SUPERBLOCK_OFFSET // self.block_size
        if (
            not superblock.feature_incompat & Incompat.META_BG
            or index < superblock.first_meta_bg
            or group == 0
        ):
            return copy + 1 + index
        if superblock.feature_compat & Compat.SPARSE_SUPER2:
            has_copy = group in backups
        else:
            sparse = superblock.feature_ro_compat & RoCompat.SPARSE_SUPER
            has_copy = not sparse or has_superblock(group)
        return superblock.first_data_block + group * superblock.blocks_per_group + has_copy

    def _is_intact_descriptor(self, group: int, data: bytes) -> bool:
        before, after = data[:_DESCRIPTOR_CHECKSUM], data[_DESCRIPTOR_CHECKSUM + 2 :]
        if self.has_checksums:
            total = checksum(self.seed, _U32.pack(group) + before + bytes(2) + after) & 0xFFFF
        elif self.superblock.feature_ro_compat & RoCompat.GDT_CSUM:
            total = _crc16(self.superblock.uuid + _U32.pack(group) + before + after)
        else:
            return True
        return data[_DESCRIPTOR_CHECKSUM:][:2] == _U16.pack(total)

    def _extents_below(self, node: bytes, depth: int, seed: int) -> Iterator[Extent]:
        """What a node of an extent tree leads to; its physical block is 0 if it was not written."""
        magic, count, room, own_depth, _ = EXTENT_HEADER.unpack_from(node)
        end = EXTENT_HEADER.size + room * EXTENT.size
        if magic != EXTENT_MAGIC or own_depth != depth or count > room or end > len(node):
            raise Damage("its extent tree is malformed")
        entries = node[EXTENT_HEADER.size : EXTENT_HEADER.size + count * EXTENT.size]
        if depth == 0:
            for logical, length, high, low in EXTENT.iter_unpack(entries):
                written = length <= MAX_EXTENT
                blocks = length if written else length - MAX_EXTENT
                physical = high << 32 | low
                if not blocks:
                    raise Damage("one of its extents is empty")
                self._check_range(physical, blocks)
                yield Extent(logical, physical if written else 0, blocks)
            return
        for logical, low, high in EXTENT_INDEX.iter_unpack(entries):
            child = self.block(high << 32 | low)
            if self.has_checksums and not _is_intact_extent_block(child, seed):
                raise Damage("the checksum of its extent tree is wrong")
            count, (first,) = EXTENT_HEADER.unpack_from(child)[1], _FIRST_LOGICAL.unpack_from(child)
            if count == 0 or first != logical:
                raise Damage("its extent tree is malformed")
            yield from self._extents_below(child, depth - 1, seed)

    def _mapped(self, pointers: bytes, count: int) -> Iterator[Extent]:
        """The first ``count`` blocks of a file of ext2 or ext3, block by block.

        After the pointers to the first twelve come those to a block of pointers, to a block of
        pointers to such blocks, and one more level.
        """
        first = 0
        for index, (pointer,) in enumerate(_U32.iter_unpack(pointers)):
            level = max(0, index - DIRECT_BLOCKS + 1)
            yield from self._mapped_below(pointer, level, first, count)
            first += (self.block_size // _U32.size) ** level

    def _mapped_below(self, pointer: int, level: int, first: int, count: int) -> Iterator[Extent]:
        if not pointer or first >= count:
            return
        if level == 0:
            self._check_range(pointer, 1)
            yield Extent(first, pointer, 1)
            return
        step = (self.block_size // _U32.size) ** (level - 1)
        for (below,) in _U32.iter_unpack(self.block(pointer)):
            if below:
                yield from self._mapped_below(below, level - 1, first, count)
            first += step

    def _merged(self, extents: Iterable[Extent]) -> list[Extent]:
        """What is written, in as few pieces as can be."""
        merged: list[Extent] = []
        end = 0
        for extent in extents:
            logical, physical, length = extent
            self._use(length)
            if logical < end:
                raise Damage("its blocks overlap, or are out of order")
            last = merged[-1] if merged else None
            if (
                physical
                and last
                and last.logical + last.length == logical
                and last.physical + last.length == physical
            ):
                merged[-1] = last._replace(length=last.length + length)
            elif physical:
                self.charge(EXTENT_COST)
                merged.append(extent)
            end = logical + length
        return merged


def _superblock(data: bytes, size: int, path: Path) -> Superblock:
    """The superblock of an image of so many bytes, if it is one that can be read."""
    if len(data) < SUPERBLOCK_SIZE or (superblock := Superblock.unpack(data)).magic != MAGIC:
        raise CorruptError(
            f"{path} is no ext2, ext3 or ext4 filesystem",
            "The image of a whole disk has partitions; take the one that holds the filesystem.",
        )
    if superblock.rev_level < DYNAMIC_REVISION:
        superblock = superblock._replace(inode_size=OLD_INODE_SIZE, first_ino=LOST_AND_FOUND)
    if superblock.feature_ro_compat & RoCompat.METADATA_CSUM:
        total = checksum(0xFFFFFFFF, data[:_SUPERBLOCK_CHECKSUM])
        stored = _U32.unpack_from(data, _SUPERBLOCK_CHECKSUM)[0]
        if superblock.checksum_type != CRC32C or total != stored:
            raise Damage("the checksum of its superblock is wrong")
    _check_features(superblock, path)
    if not _is_possible(superblock):
        raise Damage("the numbers in its superblock contradict each other")
    if superblock.blocks_count * superblock.block_size > size:
        needed = superblock.blocks_count * superblock.block_size
        raise Damage(f"it is cut off: it has {size} bytes, and its filesystem {needed}")
    return superblock


def _check_features(superblock: Superblock, path: Path) -> None:
    # As a plain number: the inverse of a flag lacks the bits that have no name.
    unreadable = superblock.feature_incompat & ~int(READABLE | Incompat.RECOVER)
    shared = superblock.feature_ro_compat & RoCompat.SHARED_BLOCKS
    if unreadable or shared:
        names = [*feature_names(Incompat, unreadable), *feature_names(RoCompat, shared)]
        raise FledgeError(
            f"{path} has features that fledge cannot read: {', '.join(names)}",
            "Mount it, and look at what the kernel shows.",
        )
    if superblock.feature_incompat & Incompat.RECOVER:
        raise FledgeError(
            f"{path} was in use when it was copied, or not unmounted: the latest changes are only"
            " in its journal",
            "Let e2fsck -fp replay the journal, in a copy if the image shall stay as it is.",
        )


def _is_possible(superblock: Superblock) -> bool:
    """Whether all that reading counts on is as the kernel takes it (ext4_fill_super)."""
    if superblock.log_block_size > MAX_LOG_BLOCK_SIZE or not superblock.blocks_per_group:
        return False
    inode_size, descriptor_size = superblock.inode_size, superblock.descriptor_size
    return (
        superblock.rev_level <= DYNAMIC_REVISION
        and superblock.first_data_block <= 1 < superblock.blocks_count
        and OLD_INODE_SIZE <= inode_size <= superblock.block_size
        and _is_power_of_two(inode_size)
        and descriptor_size <= MAX_DESCRIPTOR_SIZE
        and _is_power_of_two(descriptor_size)
        and (descriptor_size >= DESCRIPTOR_SIZE or descriptor_size == 32)
        and superblock.inodes_count == superblock.inodes_per_group * superblock.group_count
    )


def _is_power_of_two(number: int) -> bool:
    return number.bit_count() == 1


def _is_intact_inode(data: bytes, seed: int, *, has_high: bool) -> bool:
    """``has_high``: the extra fields hold the other half of the checksum."""
    low = slice(INODE_CHECKSUM_LOW, INODE_CHECKSUM_LOW + 2)
    high = slice(INODE_CHECKSUM_HIGH, INODE_CHECKSUM_HIGH + 2)
    zeroed = bytearray(data)
    zeroed[low] = bytes(2)
    if has_high:
        zeroed[high] = bytes(2)
    total = _U32.pack(checksum(seed, zeroed))
    return data[low] == total[:2] and (not has_high or data[high] == total[2:])


def _is_intact_extent_block(block: bytes, seed: int) -> bool:
    room = EXTENT_HEADER.unpack_from(block)[2]
    end = EXTENT_HEADER.size + room * EXTENT.size
    return block[end : end + 4] == _U32.pack(checksum(seed, block[:end]))


def _crc16(data: bytes) -> int:
    """What protects group descriptors without metadata_csum: CRC-16/MODBUS."""
    total = 0xFFFF
    for byte in data:
        total ^= byte
        for _ in range(8):
            total = total >> 1 ^ (0xA001 if total & 1 else 0)
    return total
