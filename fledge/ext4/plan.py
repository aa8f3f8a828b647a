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
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from operator import attrgetter

import msgspec

from fledge.errors import CorruptError, MalformedError
from fledge.ext4 import directory, xattr
from fledge.ext4.constants import LOST_AND_FOUND_PATH
from fledge.ext4.directory import Leaf
from fledge.ext4.structures import (
    BLOCK_SIZE,
    BLOCKS_PER_GROUP,
    DESCRIPTORS_PER_BLOCK,
    HASH_SEED,
    INODE_BLOCK_SIZE,
    INODES_PER_BLOCK,
    JOURNAL,
    LOST_AND_FOUND,
    MAX_INODES_PER_GROUP,
    MAX_NEW_EXTENT,
    ROOT,
    Extent,
    extent_tree_blocks,
    has_superblock,
)
from fledge.tree import Directory, File, Node, Symlink, Tree, identity
from fledge.tree.blocks import Run, data_runs
from fledge.tree.content import Content, Sparse, content_size
from fledge.tree.names import printable
from fledge.tree.space import free_space

GROUPS_PER_FLEX = 16
"""Groups whose bitmaps and inode tables lie together (flex_bg)."""

MAX_LINKS = 65000
"""Names that one inode can have (EXT4_LINK_MAX)."""

MAX_BLOCKS = (1 << 32) - 1
"""Blocks of a filesystem, 16 TiB: the pointers of the resize inode have 32 bits."""

MAX_FILE_SIZE = ((1 << 32) - 1) * BLOCK_SIZE
"""Bytes of a file, 16 TiB: block numbers in a file have 32 bits."""

LOST_AND_FOUND_BLOCKS = 4
"""Blocks of /lost+found, so that e2fsck can add entries without allocating any
(create_lost_and_found in mke2fs)."""

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


class Allocation(msgspec.Struct):
    """The inode of a node, and the blocks that it uses."""

    number: int = 0
    """The number of the inode."""
    size: int = 0
    """Bytes of the content: of a file, of the target of a symlink, of the blocks of a directory."""
    runs: tuple[Run, ...] = ()
    """Blocks of the content that are not holes, counted from its beginning."""
    has_xattr_block: bool = False
    """Extended attributes need a block."""
    extents: Sequence[Extent] = ()
    """Where the runs are on disk."""
    node_blocks: Sequence[int] = ()
    """The blocks of the extent tree, without its root in the inode."""
    xattr_block: int = 0
    """The block with extended attributes, or 0."""

    @property
    def data_blocks(self) -> int:
        """Blocks of the content."""
        blocks = 0
        for run in self.runs:
            blocks += run.length
        return blocks

    @property
    def blocks(self) -> int:
        """All blocks that the inode uses."""
        return self.data_blocks + len(self.node_blocks) + self.has_xattr_block


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
    allocations: dict[Node, Allocation]
    """In the order of `Tree.walk`."""
    links: Counter[Node]
    """How many names each node has."""
    parents: dict[Directory, Directory]
    """The root is its own parent."""
    hash_trees: dict[Directory, list[Leaf]]
    """The leaves of each directory that needs more than one block."""
    journal: Allocation | None
    """None: a filesystem that is never written has none."""
    resize_block: int | None
    """The block with the pointers to the blocks reserved for descriptors. None: as above."""
    free: list[Run]

    @property
    def last_inode(self) -> int:
        """The highest number of an inode in use. All lower ones are in use or reserved."""
        return max(allocation.number for allocation in self.allocations.values())


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
    links = Counter(node for _, node in tree.walk())
    allocations = _inodes(tree.walk(), links)
    nodes = sorted(allocations, key=attrgetter("origin"))
    _number(tree, nodes, allocations)
    hash_trees: dict[Directory, list[Leaf]] = {}
    parents = {tree.root: tree.root}
    for path, node in tree.walk():
        if isinstance(node, Directory):
            blocks = LOST_AND_FOUND_BLOCKS if path == LOST_AND_FOUND_PATH else 1
            if not directory.is_linear(node.children):
                hash_trees[node] = _leaves(path, node)
                blocks = directory.tree_size(len(hash_trees[node]))
            allocations[node].size = blocks * BLOCK_SIZE
            allocations[node].runs = _dense(blocks)
            below = (child for child in node.children.values() if isinstance(child, Directory))
            parents.update(dict.fromkeys(below, node))
    content = sum(allocation.blocks for allocation in allocations.values())
    size = -(-free_space(room.buffer_mb, content * BLOCK_SIZE) // BLOCK_SIZE)
    buffer = 0 if room.read_only else _with_extent_tree(size)
    # The root's number is below that of /lost+found.
    used_inodes = LOST_AND_FOUND + len(allocations) - 1
    inodes = used_inodes
    if not room.read_only:
        inodes = _inode_count(room.bytes_per_inode, used_inodes, content, size)
    step = room.align_mb * ALIGNMENT or 1
    needed = content + buffer
    while True:
        geometry = smallest_geometry(
            needed + (not room.read_only), inodes, step, read_only=room.read_only
        )
        _check_size(geometry)
        space, groups, journal, resize_block = _allocate_metadata(geometry)
        _allocate_contents(nodes, allocations, space)
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
        allocations=allocations,
        links=links,
        parents=parents,
        hash_trees=hash_trees,
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


def _inodes(entries: Iterable[tuple[bytes, Node]], links: Counter[Node]) -> dict[Node, Allocation]:
    """An inode for each node. Numbers, and size and runs of directories are still missing.

    Raises as `plan` does.
    """
    allocations: dict[Node, Allocation] = {}
    for path, node in entries:
        if node in allocations:
            continue
        allocation = allocations[node] = Allocation()
        if isinstance(node, File):
            allocation.size = content_size(node.content)
            allocation.runs = _runs(node.content)
        elif isinstance(node, Symlink):
            allocation.size = len(node.target)
            allocation.runs = _dense(allocation.size >= INODE_BLOCK_SIZE)
        _check(path, node, allocation.size, links[node])
        if node.xattrs:
            allocation.has_xattr_block = _has_xattr_block(path, node)
    return allocations


def _number(tree: Tree, nodes: Iterable[Node], allocations: dict[Node, Allocation]) -> None:
    """Number the inodes of the nodes, in that order."""
    lost_and_found = tree.root.children[LOST_AND_FOUND_PATH]
    allocations[tree.root].number = ROOT
    allocations[lost_and_found].number = LOST_AND_FOUND
    numbers = itertools.count(LOST_AND_FOUND + 1)
    for node in nodes:
        if node is not tree.root and node is not lost_and_found:
            allocations[node].number = next(numbers)


def _check_size(geometry: Geometry) -> None:
    if geometry.blocks > MAX_BLOCKS:
        raise CorruptError(
            f"the tree and its free space take {geometry.blocks} blocks of {BLOCK_SIZE} bytes;"
            f" ext4 takes {MAX_BLOCKS}",
            "Lower size_buffer_mb, or leave the largest files out.",
        )


def _check(path: bytes, node: Node, size: int, links: int) -> None:
    """Raise `CorruptError` if ext4 cannot hold a node."""
    problem = advice = ""
    if links > MAX_LINKS:
        problem = f"{links} hard links; ext4 takes {MAX_LINKS}"
        advice = "Copy the file for some of its names."
    elif path == LOST_AND_FOUND_PATH and not isinstance(node, Directory):
        problem = "ext4 needs a directory there"
        advice = "Rename it in the image."
    elif size > MAX_FILE_SIZE:
        problem = f"a file of {size} bytes; ext4 takes {MAX_FILE_SIZE}"
        advice = "Leave it out, or make it smaller."
    if problem:
        raise CorruptError(f"/{printable(path)}: {problem}", advice)


def _leaves(path: bytes, node: Directory) -> list[Leaf]:
    leaves = directory.leaves(node.children, HASH_SEED)
    if len(leaves) > directory.MAX_LEAVES:
        raise CorruptError(
            f"/{printable(path)}: {len(leaves)} blocks of names in one directory;"
            f" ext4 takes {directory.MAX_LEAVES}",
            "Spread its entries over several directories.",
        )
    return leaves


def _has_xattr_block(path: bytes, node: Node) -> bool:
    try:
        return bool(xattr.pack(node.xattrs).block)
    except MalformedError as error:
        raise CorruptError(
            f"/{printable(path)}: {error}", "Remove extended attributes of it, or shorten them."
        ) from error


def _runs(content: Content) -> tuple[Run, ...]:
    """The blocks of a content that are not holes."""
    if isinstance(content, Sparse):
        return tuple(data_runs(content.extents))
    return _dense(-(-content_size(content) // BLOCK_SIZE))


@lru_cache
def _dense(blocks: int) -> tuple[Run, ...]:
    """The runs of a content of so many blocks without holes."""
    return (Run(0, blocks),) if blocks else ()


def _allocate_metadata(
    geometry: Geometry,
) -> tuple[Space, list[Group], Allocation | None, int | None]:
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
        journal = Allocation(JOURNAL, blocks * BLOCK_SIZE, _dense(blocks))
        _allocate(journal, space)
    _begin(space, len(flexes[0]) * geometry.table_blocks)
    tables: list[int] = []
    for flex in flexes:
        start = flex.start * BLOCKS_PER_GROUP
        tables += [space.take_from(start, geometry.table_blocks) for _ in flex]
    space.align_later_runs()
    groups = list(map(Group, block_bitmaps, inode_bitmaps, tables))
    return space, groups, journal, resize_block


def _allocate_contents(
    nodes: Sequence[Node], allocations: dict[Node, Allocation], space: Space
) -> None:
    """Give all inodes their blocks: first those of directories and the like, then of files.

    The nodes are in the order of their origins.
    """
    others = [allocations[node] for node in nodes if not isinstance(node, File)]
    xattr_blocks = sum(allocation.has_xattr_block for allocation in allocations.values())
    _begin(space, xattr_blocks + sum(allocation.data_blocks for allocation in others))
    for node in nodes:
        allocation = allocations[node]
        if allocation.has_xattr_block:
            allocation.xattr_block = space.take_block()
        if not isinstance(node, File):
            _allocate(allocation, space)
    files = (node for node in nodes if isinstance(node, File))
    for _, group in itertools.groupby(files, attrgetter("origin")):
        members = [allocations[node] for node in group]
        _begin(space, sum(allocation.data_blocks for allocation in members))
        for allocation in members:
            if allocation.data_blocks >= LARGE_FILE:
                space.align()
            _allocate(allocation, space)


def _begin(space: Space, blocks: int) -> None:
    """Begin a part of so many blocks at a multiple of `ALIGNMENT`, unless it is small."""
    if blocks >= ALIGNMENT:
        space.align()


def _allocate(allocation: Allocation, space: Space) -> None:
    """Give an inode the blocks of its content, and those for its extent tree."""
    if not allocation.runs:
        return
    taken = space.take(allocation.data_blocks)
    if len(taken) == len(allocation.runs) == 1 and taken[0].length <= MAX_NEW_EXTENT:
        logical, physical = allocation.runs[0], taken[0]
        allocation.extents = (Extent(logical.start, logical.length, physical.start),)
        return
    allocation.extents = tuple(_extents(allocation.runs, taken))
    nodes = extent_tree_blocks(len(allocation.extents))
    allocation.node_blocks = [space.take_block() for _ in range(nodes)]


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
