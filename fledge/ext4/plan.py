"""Decides which blocks and inodes everything gets, before anything is written.

Block groups, flex_bg groups and copies of the superblock are where mke2fs puts them.

Images are sent and kept in chunks of fixed size, of which only the new ones matter. So a change of
one file changes few other blocks:

- Inodes are numbered, and contents laid out, by their origin: the lowest layer first, the mapped
  files last. In each origin the order is that of `Tree.walk`.
- Directories and other metadata are apart from the contents of files.
- What is large begins at a multiple of `ALIGNMENT`. If what is before it grows, it stays, or moves
  by whole chunks. The blocks left out are part of the free space.
- Only the superblock, its copies and the journal depend on the UUID (`structures.CHECKSUM_SEED`).
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from operator import attrgetter

import msgspec

from fledge.errors import CorruptError
from fledge.ext4.inodes import ExtentTree, Inodes, number_inodes
from fledge.ext4.structures import (
    BLOCK_SIZE,
    BLOCKS_PER_GROUP,
    DESCRIPTORS_PER_BLOCK,
    INODES_PER_BLOCK,
    MAX_INODES_PER_GROUP,
    MAX_NEW_EXTENT,
    Extent,
    extent_tree_blocks,
    has_superblock,
)
from fledge.tree import File, Tree, identity
from fledge.tree.blocks import Run
from fledge.tree.space import free_space

GROUPS_PER_FLEX = 16
"""Groups whose bitmaps and inode tables lie together (flex_bg)."""

MAX_BLOCKS = (1 << 32) - 1
"""Blocks of a filesystem, 16 TiB: the pointers of the resize inode have 32 bits."""

BYTES_PER_INODE = 16384
"""Bytes of the disk for each inode (the inode_ratio of mke2fs.conf)."""

SMALL_SPACE = 512 << 20
"""Bytes of free space with an inode for each block. mke2fs takes a disk of that size for small."""

MIN_LAST_GROUP_DATA = 64
"""Blocks for data that the last group must have. With fewer than 50, mke2fs drops the group."""

BLOCKS_PER_NEW_EXTENT = 2048
"""Blocks that the kernel puts into one extent of a large new file, at least."""

ALIGNMENT = 256
"""Blocks of 1 MiB, the chunk size for which images are laid out."""

LARGE_FILE = 4 * ALIGNMENT
"""Blocks of a file that begins at a multiple of `ALIGNMENT`, at the cost of a quarter of its size
at most."""

POINTERS_PER_BLOCK = BLOCK_SIZE // 4
MAX_GROWTH = 1024
"""How many times its size a filesystem can be grown to (calc_reserved_gdt_blocks in mke2fs)."""


class Geometry(msgspec.Struct, frozen=True, dict=True):
    """How a filesystem is divided into block groups."""

    blocks: int
    inodes_per_group: int
    read_only: bool = False
    """Whether it is never written: it then has no journal and cannot grow."""

    @property
    def groups(self) -> int:
        """How many block groups there are."""
        return -(-self.blocks // BLOCKS_PER_GROUP)

    @property
    def inodes(self) -> int:
        """How many inodes there are, used or not."""
        return self.groups * self.inodes_per_group

    @property
    def table_blocks(self) -> int:
        """Blocks of the inode table of one group."""
        return self.inodes_per_group // INODES_PER_BLOCK

    @cached_property
    def descriptor_blocks(self) -> int:
        """Blocks of group descriptors, in each copy."""
        return -(-self.groups // DESCRIPTORS_PER_BLOCK)

    @cached_property
    def reserved_blocks(self) -> int:
        """Blocks reserved for the descriptors of more groups, in each copy."""
        if self.read_only:
            return 0
        largest = min(self.blocks * MAX_GROWTH, MAX_BLOCKS)
        descriptors = -(-largest // BLOCKS_PER_GROUP)
        more = -(-descriptors // DESCRIPTORS_PER_BLOCK) - self.descriptor_blocks
        return min(max(more, 0), POINTERS_PER_BLOCK)

    @property
    def journal_blocks(self) -> int:
        """Blocks of the journal (ext2fs_default_journal_size)."""
        if self.read_only:
            return 0
        for limit, size in _JOURNAL_BLOCKS:
            if self.blocks < limit:
                return size
        return 1 << 18

    @cached_property
    def copy_groups(self) -> list[int]:
        """The groups that begin with a copy of the superblock."""
        return [group for group in range(self.groups) if has_superblock(group)]

    @property
    def copy_blocks(self) -> int:
        """Blocks of one copy: a superblock, the descriptors and the reserved blocks."""
        return 1 + self.descriptor_blocks + self.reserved_blocks

    @property
    def withheld_blocks(self) -> int:
        """Free blocks that a kernel lets nobody use, root neither (ext4_set_resv_clusters)."""
        return 0 if self.read_only else min(self.blocks // 50, 4096)

    @property
    def overhead(self) -> int:
        """Blocks that the filesystem needs for itself."""
        groups = self.groups * (2 + self.table_blocks)
        return groups + len(self.copy_groups) * self.copy_blocks + self.journal_blocks

    @property
    def min_last_group(self) -> int:
        """Blocks that the last group must have."""
        copy = self.copy_blocks if has_superblock(self.groups - 1) else 0
        data = 1 if self.read_only else MIN_LAST_GROUP_DATA
        return copy + 2 + self.table_blocks + data


_JOURNAL_BLOCKS = (
    (1 << 15, 1 << 10),
    (1 << 18, 1 << 12),
    (1 << 19, 1 << 13),
    (1 << 22, 1 << 14),
    (1 << 23, 1 << 15),
    (1 << 24, 1 << 16),
    (1 << 25, 1 << 17),
)
"""Blocks of the journal in filesystems of fewer blocks than the limit: pairs (limit, size)."""


def smallest_geometry(
    needed: int, inodes: int, step: int = 1, *, read_only: bool = False
) -> Geometry:
    """The smallest filesystem with ``needed`` blocks for data and at least so many inodes.

    The number of its blocks is a multiple of ``step``.
    """

    def enough_for(blocks: int) -> int:
        total = _total_blocks(_geometry(blocks, inodes, read_only), needed)
        return total + -total % step

    min_groups = -(-inodes // MAX_INODES_PER_GROUP)
    blocks = max(needed, (min_groups - 1) * BLOCKS_PER_GROUP + 1)
    blocks += -blocks % step
    while (enough := enough_for(blocks)) > blocks:
        blocks = enough
    # With more groups each inode table is smaller, so it may have become too large.
    while enough < blocks and enough_for(enough) <= enough:
        blocks, enough = enough, enough_for(enough)
    return _geometry(blocks, inodes, read_only)


def _geometry(blocks: int, inodes: int, read_only: bool) -> Geometry:
    groups = -(-blocks // BLOCKS_PER_GROUP)
    per_group = -(-inodes // groups)
    return Geometry(blocks, per_group + -per_group % INODES_PER_BLOCK, read_only)


def _total_blocks(geometry: Geometry, needed: int) -> int:
    """Blocks that a filesystem of that geometry must have, with ``needed`` ones for data."""
    before_last = (geometry.groups - 1) * BLOCKS_PER_GROUP
    used = needed + geometry.overhead + geometry.withheld_blocks
    return max(used, before_last + geometry.min_last_group)


def run_before(runs: Sequence[Run], block: int) -> int:
    """The index of the last of ascending runs that starts at or before a block, or 0."""
    return max(0, bisect_right(runs, block, key=attrgetter("start")) - 1)


class Space:
    """The free blocks of a filesystem."""

    def __init__(self, blocks: int, *, dense: bool = False) -> None:
        """``dense`` leaves no gaps, so that nothing is aligned."""
        self.dense = dense
        self.runs: list[Run] = [Run(0, blocks)]
        """Those that can be taken, ascending."""
        self.left: list[Run] = []
        """Those that stay free between others."""
        self.end = self.blocks = blocks
        """``end`` is behind the last block, or the last one that was taken if there are too few."""

    @property
    def free(self) -> int:
        """How many blocks are free; negative if more were taken than there are."""
        return sum(run.length for run in (*self.runs, *self.left)) + self.blocks - self.end

    def reserve(self, start: int, length: int) -> None:
        """Take these blocks, which must be free."""
        position = run_before(self.runs, start)
        run = self.runs[position]
        before = Run(run.start, start - run.start)
        after = Run(start + length, run.start + run.length - start - length)
        self.runs[position : position + 1] = [left for left in (before, after) if left.length]

    def take(self, length: int) -> list[Run]:
        """The first free blocks, in as few runs as possible.

        If there are too few free blocks, the rest comes from behind the end.
        """
        taken: list[Run] = []
        while length and self.runs:
            start, available = self.runs[0]
            count = min(length, available)
            taken.append(Run(start, count))
            if count < available:
                self.runs[0] = Run(start + count, available - count)
            else:
                del self.runs[0]
            length -= count
        if length:
            taken.append(Run(self.end, length))
            self.end += length
        return taken

    def take_adjacent(self, length: int) -> int | None:
        """Take the first free blocks if they are adjacent, and return where they start.

        Returns None, and takes nothing, if the first free run is too short.
        """
        if not self.runs:
            return None
        start, available = self.runs[0]
        if length >= available:
            return None
        self.runs[0] = Run(start + length, available - length)
        return start

    def take_block(self) -> int:
        """The first free block."""
        return self.take(1)[0].start

    def take_from(self, start: int, length: int) -> int:
        """The start of the first free run of that length from the block ``start`` on.

        Raises `ValueError` if there is none.
        """
        for run in itertools.islice(self.runs, run_before(self.runs, start), None):
            begin = max(run.start, start)
            if run.start + run.length - begin >= length:
                self.reserve(begin, length)
                return begin
        raise ValueError(f"no {length} adjacent blocks after {start}")

    def align(self) -> None:
        """Leave blocks free, so that the next one is at a multiple of `ALIGNMENT`."""
        if self.dense:
            return
        while self.runs:
            run = self.runs.pop(0)
            gap = min(-run.start % ALIGNMENT, run.length)
            self._leave(run.start, gap)
            if gap < run.length:
                self.runs.insert(0, Run(run.start + gap, run.length - gap))
                return
        gap = -self.end % ALIGNMENT
        self._leave(self.end, gap)
        self.end += gap

    def align_later_runs(self) -> None:
        """Leave the first blocks of all runs but the first one free, up to such a multiple."""
        if self.dense:
            return
        later, self.runs = self.runs[1:], self.runs[:1]
        for run in later:
            gap = min(-run.start % ALIGNMENT, run.length)
            self._leave(run.start, gap)
            if gap < run.length:
                self.runs.append(Run(run.start + gap, run.length - gap))

    def _leave(self, start: int, length: int) -> None:
        if length:
            self.left.append(Run(start, length))


class Group(msgspec.Struct, frozen=True):
    """The blocks with the metadata of a block group."""

    block_bitmap: int
    inode_bitmap: int
    inode_table: int
    """The first block of it."""


class Plan(msgspec.Struct, frozen=True):
    """Everything that is decided before a filesystem is written."""

    uuid: bytes
    geometry: Geometry
    groups: list[Group]
    inodes: Inodes
    journal: ExtentTree | None
    """None: a filesystem that is never written has none."""
    resize_block: int | None
    """The block with the pointers to the blocks reserved for descriptors. None: as above."""
    free: list[Run]


class Room(msgspec.Struct, frozen=True):
    """What a filesystem has beside its content."""

    buffer_mb: int = 0
    """MiB that can be written once it is mounted. 0: as `free_space` says."""
    align_mb: int = 0
    """MiB of which its size is a multiple. 0: of a block."""
    bytes_per_inode: int | None = None
    """Bytes of the disk for each inode. None: see `_inode_count`."""
    read_only: bool = False
    """There is no room, and all blocks are as close as they can be."""


def make_plan(tree: Tree, room: Room, epoch: int) -> Plan:
    """Plan a filesystem with the whole tree and room for more.

    If the last group would be too small there is a little more. ``epoch`` is the time of the
    filesystem in seconds since 1970. The tree must have a /lost+found.

    Raises `CorruptError`, with the path, for anything that ext4 cannot hold; `FledgeError` if a
    content cannot be read.
    """
    inodes = number_inodes(tree)
    content = sum(inodes.blocks) + len(inodes.xattr_blocks)
    size = -(-free_space(room.buffer_mb, content * BLOCK_SIZE) // BLOCK_SIZE)
    buffer = 0 if room.read_only else _with_extent_tree(size)
    count = used = inodes.last + 1
    if not room.read_only:
        count = _inode_count(room.bytes_per_inode, used, content, size)
    step = room.align_mb * ALIGNMENT or 1
    needed = content + buffer
    while True:
        geometry = smallest_geometry(
            needed + (not room.read_only), count, step, read_only=room.read_only
        )
        _check_size(geometry)
        space, groups, journal, resize_block = _allocate_metadata(geometry)
        _allocate_contents(inodes, space)
        # Extent trees have taken some of it, or too much of it is between the contents.
        buffer = 0 if room.read_only else _with_extent_tree(size, len(space.left))
        missing = max(buffer + geometry.withheld_blocks - space.free, space.end - space.blocks)
        if missing <= 0:
            break
        needed += missing
    return Plan(
        uuid=identity.tree_uuid(tree, (msgspec.structs.astuple(room), epoch)),
        geometry=geometry,
        groups=groups,
        inodes=inodes,
        journal=journal,
        resize_block=resize_block,
        free=sorted(space.runs + space.left),
    )


def _inode_count(bytes_per_inode: int | None, used: int, content: int, free: int) -> int:
    """The number of inodes on a disk with so many blocks of content, which use ``used`` inodes, and
    so many free ones.
    """
    ratio = bytes_per_inode or BYTES_PER_INODE
    small = 0 if bytes_per_inode else min(free * BLOCK_SIZE, SMALL_SPACE)
    spare = small // BLOCK_SIZE + (free * BLOCK_SIZE - small) // ratio
    return max((content + free) * BLOCK_SIZE // ratio, used + spare)


def _with_extent_tree(blocks: int, gaps: int = 0) -> int:
    """The blocks that one new file takes whose content has so many, also if it is in ``gaps``."""
    # A few extents more, because the other free space need not be adjacent either.
    return blocks + extent_tree_blocks(blocks // BLOCKS_PER_NEW_EXTENT + 5 + gaps)


def _check_size(geometry: Geometry) -> None:
    if geometry.blocks > MAX_BLOCKS:
        raise CorruptError(
            f"the tree and its free space take {geometry.blocks} blocks of {BLOCK_SIZE} bytes;"
            f" ext4 takes {MAX_BLOCKS}",
            "Lower size_buffer_mb, or leave the largest files out.",
        )


def _allocate_metadata(
    geometry: Geometry,
) -> tuple[Space, list[Group], ExtentTree | None, int | None]:
    """The space that is left, the groups, the journal, and the block of the resize inode."""
    space = Space(geometry.blocks, dense=geometry.read_only)
    for group in geometry.copy_groups:
        space.reserve(group * BLOCKS_PER_GROUP, geometry.copy_blocks)
    flexes = [
        range(first, min(first + GROUPS_PER_FLEX, geometry.groups))
        for first in range(0, geometry.groups, GROUPS_PER_FLEX)
    ]
    block_bitmaps: list[int] = []
    inode_bitmaps: list[int] = []
    for flex in flexes:
        start = flex.start * BLOCKS_PER_GROUP
        block_bitmaps += [space.take_from(start, 1) for _ in flex]
        inode_bitmaps += [space.take_from(start, 1) for _ in flex]
    journal = resize_block = None
    if not geometry.read_only:
        resize_block = space.take_block()
        # The journal begins with the UUID, as the superblock just before it does.
        blocks = geometry.journal_blocks
        journal = _take([Run(0, blocks)], blocks, space)
    _begin(space, len(flexes[0]) * geometry.table_blocks)
    tables: list[int] = []
    for flex in flexes:
        start = flex.start * BLOCKS_PER_GROUP
        tables += [space.take_from(start, geometry.table_blocks) for _ in flex]
    space.align_later_runs()
    groups = list(map(Group, block_bitmaps, inode_bitmaps, tables))
    return space, groups, journal, resize_block


def _allocate_contents(inodes: Inodes, space: Space) -> None:
    """Give all inodes their blocks: first those of directories and the like, then of files."""
    nodes, blocks = inodes.nodes, inodes.blocks
    inodes.trees.clear()
    others = sum(blocks[each] for each in inodes.metadata if not isinstance(nodes[each], File))
    _begin(space, len(inodes.xattr_blocks) + others)
    for number in inodes.metadata:
        if number in inodes.xattr_blocks:
            inodes.xattr_blocks[number] = space.take_block()
        if not isinstance(nodes[number], File):
            _allocate(inodes, number, space)
    for files in inodes.files:
        _begin(space, sum(blocks[number] for number in files))
        for number in files:
            if blocks[number] >= LARGE_FILE:
                space.align()
            _allocate(inodes, number, space)


def _begin(space: Space, blocks: int) -> None:
    """Begin a part of so many blocks at a multiple of `ALIGNMENT`, unless it is small."""
    if blocks >= ALIGNMENT:
        space.align()


def _allocate(inodes: Inodes, number: int, space: Space) -> None:
    """Give an inode the blocks of its content, and those for its extent tree."""
    blocks = inodes.blocks[number]
    if blocks <= MAX_NEW_EXTENT and number not in inodes.runs:
        start = space.take_adjacent(blocks)
        if start is not None:
            inodes.starts[number] = start
            return
    runs = inodes.runs.get(number) or [Run(0, blocks)]
    inodes.trees[number] = _take(runs, blocks, space)


def _take(runs: Iterable[Run], blocks: int, space: Space) -> ExtentTree:
    """The place of a content whose runs have so many blocks together."""
    extents = list(_extents(runs, space.take(blocks)))
    nodes = extent_tree_blocks(len(extents))
    return ExtentTree(extents, [space.take_block() for _ in range(nodes)])


def _extents(runs: Iterable[Run], taken: Iterable[Run]) -> Iterator[Extent]:
    """The extents of a content: its runs put into as many blocks on disk, in order."""
    remaining = iter(taken)
    physical = available = 0
    for run in runs:
        logical, end = run.start, run.start + run.length
        while logical < end:
            if not available:
                physical, available = next(remaining)
            length = min(end - logical, available, MAX_NEW_EXTENT)
            yield Extent(logical, length, physical)
            logical, physical, available = logical + length, physical + length, available - length
