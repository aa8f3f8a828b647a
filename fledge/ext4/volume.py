"""Reads the inodes of an ext2, ext3 or ext4 image, and finds their blocks.

It follows Documentation/filesystems/ext4 in the kernel's sources, and the code in fs/ext4 where
that is silent. Checksums are verified wherever the filesystem has them. Nothing outside of the
image is ever read, and memory and time are bounded whatever its bytes are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from struct import Struct

from fledge.errors import CorruptError, FledgeError, MalformedError
from fledge.ext4.constants import MAGIC, SUPERBLOCK_OFFSET
from fledge.ext4.structures import (
    CHECKSUM_SIZE,
    CRC32C,
    DESCRIPTOR_SIZE,
    DIRECT_BLOCKS,
    DYNAMIC_REVISION,
    EXTENT,
    EXTENT_HEADER,
    EXTENT_INDEX,
    EXTENT_MAGIC,
    INODE,
    LOST_AND_FOUND,
    MAX_EXTENT,
    OLD_INODE_SIZE,
    SUPERBLOCK_SIZE,
    Compat,
    Extent,
    GroupDescriptor,
    Incompat,
    Inode,
    InodeFlag,
    RoCompat,
    Superblock,
    checksum,
    descriptor_checksum,
    feature_names,
    has_superblock,
    inode_seed,
    old_descriptor_checksum,
    superblock_checksum,
)
from fledge.tree.budget import Budget

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
"""Any other incompatible feature changes the format in a way that is not understood here."""

EXTENT_COST = 200
"""Bytes of memory that an extent takes."""
GROUP_COST = 512
"""Bytes of memory that a block group takes."""

MAX_LOG_BLOCK_SIZE = 6
MAX_DESCRIPTOR_SIZE = 1024
MAX_EXTENT_DEPTH = 5
MAX_BLOCKS_IN_FILE = 1 << 32

_POINTER = Struct("<I")
"""A block number in an inode without extents, or in a block of pointers."""


class Volume:
    """The filesystem in an image.

    Its methods raise `MalformedError` if the image breaks the rules of the format.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        """Read what all else depends on from ``descriptor``; ``path`` is for messages.

        Raises `CorruptError` if there is no such filesystem, `FledgeError` if it cannot be read,
        and `MalformedError`.
        """
        self._descriptor = descriptor
        data = os.pread(descriptor, SUPERBLOCK_SIZE, SUPERBLOCK_OFFSET)
        self.superblock = _superblock(data, os.lseek(descriptor, 0, os.SEEK_END), path)
        self.block_size = self.superblock.block_size
        self.has_checksums = bool(self.superblock.feature_ro_compat & RoCompat.METADATA_CSUM)
        self.seed = self.superblock.seed
        self._unused = self.superblock.blocks_count
        self.budget = Budget(self.superblock.blocks_count * self.block_size)
        self._inode_tables = self._read_inode_tables()

    def block(self, number: int) -> bytes:
        """A block of metadata that does not belong to the content of an inode."""
        self._use(1)
        self._check_range(number, 1)
        return self._read(number * self.block_size, self.block_size)

    def inode(self, number: int) -> Inode:
        """The inode of that number, with its checksum verified."""
        superblock = self.superblock
        if not 1 <= number <= superblock.inodes_count:
            raise MalformedError(f"there are only {superblock.inodes_count} inodes")
        group, index = divmod(number - 1, superblock.inodes_per_group)
        position = self._inode_tables[group] * self.block_size + index * superblock.inode_size
        data = self._read(position, superblock.inode_size)
        inode = Inode.unpack(data)
        extra = inode.extra_isize
        if extra % 4 or extra > superblock.inode_size - OLD_INODE_SIZE:
            raise MalformedError(f"its extra fields cannot have {extra} bytes")
        if self.has_checksums:
            seed = inode_seed(self.seed, number, inode.generation)
            if not _is_intact_inode(inode, data, seed):
                raise MalformedError("its checksum is wrong")
        return inode

    def extents(self, number: int, inode: Inode) -> list[Extent]:
        """The extents of an inode in order. Everything between them reads as zeros."""
        if inode.size > MAX_BLOCKS_IN_FILE * self.block_size:
            raise MalformedError(f"{inode.size} bytes are too many for a file")
        if not inode.flags & InodeFlag.EXTENTS:
            return self._merged(self._mapped(inode.block, self._block_count(inode)))
        depth = EXTENT_HEADER.unpack_from(inode.block).depth
        if depth > MAX_EXTENT_DEPTH:
            raise MalformedError("its extent tree is too deep")
        seed = inode_seed(self.seed, number, inode.generation) if depth else 0
        return self._merged(self._extents_below(inode.block, depth, seed))

    def blocks(self, number: int, inode: Inode) -> Iterator[bytes]:
        """The blocks of an inode whose content is metadata, which has no holes."""
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
            raise MalformedError(f"its block {position} is missing")

    def _use(self, blocks: int) -> None:
        """Count blocks in use. None is used twice, so there are at most all of the filesystem."""
        self._unused -= blocks
        if self._unused < 0:
            raise MalformedError("more blocks are in use than there are")

    def _block_count(self, inode: Inode) -> int:
        return -(-inode.size // self.block_size)

    def _read(self, position: int, size: int) -> bytes:
        if position + size > self.superblock.blocks_count * self.block_size:
            raise MalformedError("it is beyond the end of the filesystem")
        data = os.pread(self._descriptor, size, position)
        if len(data) < size:
            raise MalformedError("the image is shorter than it was")
        return data

    def _check_range(self, block: int, length: int) -> None:
        if not self.superblock.first_data_block < block <= self.superblock.blocks_count - length:
            raise MalformedError(f"it uses block {block}, which no file can have")

    def _read_inode_tables(self) -> list[int]:
        """The first block of the inodes of each group."""
        size = self.superblock.descriptor_size
        groups = range(self.superblock.group_count)
        per_block = self.block_size // size
        self.budget.charge(len(groups) * GROUP_COST)
        tables: list[int] = []
        for start in groups[::per_block]:
            block = self.block(self._descriptors_at(start, per_block))
            for group in groups[start : start + per_block]:
                data = block[group % per_block * size :][:size]
                descriptor = GroupDescriptor.unpack(data)
                if not self._is_intact_descriptor(group, descriptor, data):
                    raise MalformedError(
                        f"the checksum of the descriptor of group {group} is wrong"
                    )
                tables.append(descriptor.inode_table)
        return tables

    def _descriptors_at(self, group: int, per_block: int) -> int:
        """The block with the descriptors of ``group`` and those after it.

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
            has_copy = group in (superblock.backup_group_1, superblock.backup_group_2)
        else:
            sparse = superblock.feature_ro_compat & RoCompat.SPARSE_SUPER
            has_copy = not sparse or has_superblock(group)
        return superblock.first_data_block + group * superblock.blocks_per_group + has_copy

    def _is_intact_descriptor(self, group: int, descriptor: GroupDescriptor, data: bytes) -> bool:
        """Whether the checksum in ``data``, which is this descriptor, is right or not in use."""
        if self.has_checksums:
            return descriptor.checksum == descriptor_checksum(group, data, self.seed)
        if self.superblock.feature_ro_compat & RoCompat.GDT_CSUM:
            uuid = self.superblock.uuid
            return descriptor.checksum == old_descriptor_checksum(group, data, uuid)
        return True

    def _extents_below(self, node: bytes, depth: int, seed: int) -> Iterable[Extent]:
        """All extents below a node of an extent tree. Unwritten ones have the physical block 0.

        ``seed`` is the `inode_seed`. In the inode itself, whose depth is 0, it is not needed.
        """
        header = EXTENT_HEADER.unpack_from(node)
        end = EXTENT_HEADER.size + header.max * EXTENT.size
        is_well_formed = (
            header.magic == EXTENT_MAGIC
            and header.depth == depth
            and header.entries <= header.max
            and end <= len(node)
        )
        if not is_well_formed:
            raise MalformedError("its extent tree is malformed")
        entries = node[EXTENT_HEADER.size :][: header.entries * EXTENT.size]
        return self._extents_in(entries, depth, seed) if depth else self._leaf_extents(entries)

    def _leaf_extents(self, entries: bytes) -> list[Extent]:
        """The extents in a leaf of an extent tree."""
        extents = list(EXTENT.iter_unpack(entries))
        for position, extent in enumerate(extents):
            is_written = extent.length <= MAX_EXTENT
            length = extent.length if is_written else extent.length - MAX_EXTENT
            if not length:
                raise MalformedError("one of its extents is empty")
            self._check_range(extent.physical, length)
            if not is_written:
                extents[position] = extent._replace(length=length, physical=0)
        return extents

    def _extents_in(self, entries: bytes, depth: int, seed: int) -> Iterator[Extent]:
        """The extents below the indexes of a node of an extent tree."""
        for index in EXTENT_INDEX.iter_unpack(entries):
            child = self.block(index.leaf)
            if self.has_checksums and not _is_intact_extent_block(child, seed):
                raise MalformedError("the checksum of its extent tree is wrong")
            # Extents and indexes begin with the same field.
            first = EXTENT_INDEX.unpack_from(child, EXTENT_HEADER.size).logical
            if not EXTENT_HEADER.unpack_from(child).entries or first != index.logical:
                raise MalformedError("its extent tree is malformed")
            yield from self._extents_below(child, depth - 1, seed)

    def _mapped(self, pointers: bytes, count: int) -> Iterator[Extent]:
        """The first ``count`` blocks of a file of ext2 or ext3, one by one.

        The first twelve pointers lead to blocks of the file, the next one to a block of pointers,
        then one to a block of pointers to such blocks, and the last one goes a level further.
        """
        first = 0
        for index, (pointer,) in enumerate(_POINTER.iter_unpack(pointers)):
            level = max(0, index - DIRECT_BLOCKS + 1)
            yield from self._mapped_below(pointer, level, first, count)
            first += (self.block_size // _POINTER.size) ** level

    def _mapped_below(self, pointer: int, level: int, first: int, count: int) -> Iterator[Extent]:
        """The blocks that a pointer leads to; ``first`` is the position of the first of them."""
        if not pointer or first >= count:
            return
        if level == 0:
            self._check_range(pointer, 1)
            yield Extent(logical=first, length=1, physical=pointer)
            return
        step = (self.block_size // _POINTER.size) ** (level - 1)
        for (below,) in _POINTER.iter_unpack(self.block(pointer)):
            if below:
                yield from self._mapped_below(below, level - 1, first, count)
            first += step

    def _merged(self, extents: Iterable[Extent]) -> list[Extent]:
        """The written extents, with adjacent ones joined."""
        merged: list[Extent] = []
        end = 0
        for extent in extents:
            self._use(extent.length)
            if extent.logical < end:
                raise MalformedError("its blocks overlap, or are out of order")
            last = merged[-1] if merged else None
            if (
                extent.physical
                and last
                and last.logical + last.length == extent.logical
                and last.physical + last.length == extent.physical
            ):
                merged[-1] = last._replace(length=last.length + extent.length)
            elif extent.physical:
                self.budget.charge(EXTENT_COST)
                merged.append(extent)
            end = extent.logical + extent.length
        return merged


def _superblock(data: bytes, size: int, path: Path) -> Superblock:
    """The superblock in ``data``, checked, of an image of ``size`` bytes."""
    if len(data) < SUPERBLOCK_SIZE or (superblock := Superblock.unpack(data)).magic != MAGIC:
        raise CorruptError(
            f"{path} is not an ext2, ext3 or ext4 filesystem",
            "If it is the image of a whole disk, take the partition with the filesystem.",
        )
    if superblock.rev_level < DYNAMIC_REVISION:
        superblock = superblock._replace(inode_size=OLD_INODE_SIZE, first_ino=LOST_AND_FOUND)
    if superblock.feature_ro_compat & RoCompat.METADATA_CSUM:
        total = superblock_checksum(data)
        if superblock.checksum_type != CRC32C or superblock.checksum != total:
            raise MalformedError("the checksum of its superblock is wrong")
    _check_features(superblock, path)
    if not _is_possible(superblock):
        raise MalformedError("the numbers in its superblock contradict each other")
    if superblock.blocks_count * superblock.block_size > size:
        needed = superblock.blocks_count * superblock.block_size
        raise MalformedError(f"it is cut off: it has {size} bytes, and its filesystem {needed}")
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
            f"{path} was in use when it was copied, or was not unmounted: its latest changes are"
            " only in its journal",
            "Replay the journal with e2fsck -fp, in a copy if the image must not change.",
        )


def _is_possible(superblock: Superblock) -> bool:
    """Whether the kernel would accept the fields on which reading relies (ext4_fill_super)."""
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


def _is_intact_inode(inode: Inode, data: bytes, seed: int) -> bool:
    """Whether the checksum in ``data``, which is this inode, is right; ``seed`` is its own."""
    zeroed = bytearray(data)
    zeroed[_CHECKSUM_LOW] = bytes(2)
    # The upper half is an extra field, which old inodes lack.
    if OLD_INODE_SIZE + inode.extra_isize < _CHECKSUM_HIGH.stop:
        return inode.checksum == checksum(seed, zeroed) & 0xFFFF
    zeroed[_CHECKSUM_HIGH] = bytes(2)
    return inode.checksum == checksum(seed, zeroed)


_CHECKSUM_LOW, _CHECKSUM_HIGH = (slot.slice for slot in INODE.slots["checksum"])


def _is_intact_extent_block(block: bytes, seed: int) -> bool:
    """Whether the checksum of a node of an extent tree is right."""
    end = EXTENT_HEADER.size + EXTENT_HEADER.unpack_from(block).max * EXTENT.size
    stored = int.from_bytes(block[end : end + CHECKSUM_SIZE], "little")
    return stored == checksum(seed, block[:end])
