"""Which blocks and inodes everything gets, decided before anything is written.

Groups, flexible groups and copies of the superblock are where mke2fs puts them. Inodes are
numbered and file data is laid out in the order of `Tree.walk`.
"""

from __future__ import annotations

import itertools
import uuid
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from hashlib import sha256
from operator import itemgetter

import msgspec

from fledge.errors import CorruptError
from fledge.ext4 import directory, xattr
from fledge.ext4.directory import Leaf
from fledge.ext4.structures import (
    BLOCK_SIZE,
    BLOCKS_PER_GROUP,
    DESCRIPTORS_PER_BLOCK,
    INODE_BLOCK_SIZE,
    INODES_PER_BLOCK,
    JOURNAL,
    LOST_AND_FOUND,
    MAX_EXTENT,
    MAX_INODES_PER_GROUP,
    ROOT,
    Extent,
    extent_tree_blocks,
    has_superblock,
)
from fledge.tree import Device, Directory, File, Node, Symlink, Tree
from fledge.tree.content import Content, Span, Sparse, content_sha256, content_size, read_extents
from fledge.tree.names import printable
from fledge.tree.space import free_space

GROUPS_PER_FLEX = 16
"""Groups that keep their bitmaps and inode tables together (flex_bg)."""

MAX_LINKS = 65000
"""Names of one inode (EXT4_LINK_MAX)."""

MAX_BLOCKS = (1 << 32) - 1
"""16 TiB: the pointers of the resize inode have 32 bits."""

MAX_FILE_SIZE = ((1 << 32) - 1) * BLOCK_SIZE
"""16 TiB: block numbers in a file have 32 bits."""

LOST_AND_FOUND_BLOCKS = 4
"""So that e2fsck can put something there without allocating (mke2fs's create_lost_and_found)."""

BYTES_PER_SPARE_INODE = 16384
"""mke2fs's default ratio, for the free space."""

MIN_LAST_GROUP = 64
"""Blocks that the last group must have for data: with fewer than 50 mke2fs drops it."""

POINTERS_PER_BLOCK = BLOCK_SIZE // 4
MAX_GROWTH = 1024
"""How many times its size a filesystem can grow to (mke2fs's calc_reserved_gdt_blocks)."""

LOST_AND_FOUND_PATH = b"lost+found"

Run = tuple[int, int]
"""The first of some adjacent blocks, and how many they are."""


class Geometry(msgspec.Struct, frozen=True, dict=True):
    """How a filesystem is divided."""

    blocks: int
    inodes_per_group: int

    @property
    def groups(self) -> int:
        return -(-self.blocks // BLOCKS_PER_GROUP)

    @property
    def inodes(self) -> int:
        return self.groups * self.inodes_per_group

    @property
    def table_blocks(self) -> int:
        """Blocks in the inode table of one group."""
        return self.inodes_per_group // INODES_PER_BLOCK

    @cached_property
    def descriptor_blocks(self) -> int:
        return -(-self.groups // DESCRIPTORS_PER_BLOCK)

    @cached_property
    def reserved_blocks(self) -> int:
        """Blocks behind the descriptors, for those of more groups."""
        largest = min(self.blocks * MAX_GROWTH, MAX_BLOCKS)
        descriptors = -(-largest // BLOCKS_PER_GROUP)
        more = -(-descriptors // DESCRIPTORS_PER_BLOCK) - self.descriptor_blocks
        return min(max(more, 0), POINTERS_PER_BLOCK)

    @property
    def journal_blocks(self) -> int:
        """As ext2fs_default_journal_size has it."""
        for limit, size in _JOURNAL_BLOCKS:
            if self.blocks < limit:
                return size
        return 1 << 18

    @cached_property
    def copies(self) -> list[int]:
        """The groups that begin with a superblock."""
        return [group for group in range(self.groups) if has_superblock(group)]

    @property
    def copy_blocks(self) -> int:
        """Blocks of a superblock, its descriptors and the reserved ones."""
        return 1 + self.descriptor_blocks + self.reserved_blocks

    @property
    def overhead(self) -> int:
        """Blocks that no file can have."""
        groups = self.groups * (2 + self.table_blocks)
        return groups + len(self.copies) * self.copy_blocks + self.journal_blocks

    @property
    def least_group(self) -> int:
        """Blocks that the last group must have."""
        copy = self.copy_blocks if has_superblock(self.groups - 1) else 0
        return copy + 2 + self.table_blocks + MIN_LAST_GROUP


_JOURNAL_BLOCKS = (
    (1 << 15, 1 << 10),
    (1 << 18, 1 << 12),
    (1 << 19, 1 << 13),
    (1 << 22, 1 << 14),
    (1 << 23, 1 << 15),
    (1 << 24, 1 << 16),
    (1 << 25, 1 << 17),
)


def geometry(needed: int, inodes: int) -> Geometry:
    """The smallest filesystem with that many blocks for data and at least that many inodes."""
    least = -(-inodes // MAX_INODES_PER_GROUP)
    blocks = max(needed, (least - 1) * BLOCKS_PER_GROUP + 1)
    while (enough := _enough(_divided(blocks, inodes), needed)) > blocks:
        blocks = enough
    # More groups have smaller inode tables, so it may have become too many.
    while enough < blocks and _enough(_divided(enough, inodes), needed) <= enough:
        blocks, enough = enough, _enough(_divided(enough, inodes), needed)
    return _divided(blocks, inodes)


def _divided(blocks: int, inodes: int) -> Geometry:
    groups = -(-blocks // BLOCKS_PER_GROUP)
    per_group = -(-inodes // groups)
    return Geometry(blocks, per_group + -per_group % INODES_PER_BLOCK)


def _enough(divided: Geometry, needed: int) -> int:
    """Blocks for ``needed`` ones and all that a filesystem so divided has beside them."""
    before_last = (divided.groups - 1) * BLOCKS_PER_GROUP
    return max(needed + divided.overhead, before_last + divided.least_group)


def run_before(runs: Sequence[Run], block: int) -> int:
    """Which of ascending runs is the last that does not begin after a block; else the first."""
    return max(0, bisect_right(runs, block, key=itemgetter(0)) - 1)


class Space:
    """The free blocks of a filesystem."""

    def __init__(self, blocks: int) -> None:
        self.runs: list[Run] = [(0, blocks)]
        """Ascending, with a gap between any two."""
        self.end = self.blocks = blocks
        """Behind the last block, real or taken."""

    @property
    def free(self) -> int:
        """How many they are; negative if more were to be taken than there are."""
        return sum(length for _, length in self.runs) + self.blocks - self.end

    def reserve(self, start: int, length: int) -> None:
        """Take blocks that are free."""
        position = run_before(self.runs, start)
        first, count = self.runs[position]
        before = first, start - first
        after = start + length, first + count - start - length
        self.runs[position : position + 1] = [run for run in (before, after) if run[1]]

    def take(self, length: int) -> list[Run]:
        """The first adjacent blocks; if there are not as many, whatever comes first.

        Without any left they come from behind the end, and `free` is negative.
        """
        for position, (first, count) in enumerate(self.runs):
            if count >= length:
                self._shorten(position, length)
                return [(first, length)]
        taken: list[Run] = []
        while length and self.runs:
            first, count = self.runs[0]
            taken.append((first, min(count, length)))
            self._shorten(0, taken[-1][1])
            length -= taken[-1][1]
        if length:
            taken.append((self.end, length))
            self.end += length
        return taken

    def take_from(self, start: int, length: int) -> int:
        """The first of adjacent blocks that come after ``start``."""
        for first, count in itertools.islice(self.runs, run_before(self.runs, start), None):
            begin = max(first, start)
            if first + count - begin >= length:
                self.reserve(begin, length)
                return begin
        raise ValueError(f"no {length} adjacent blocks after {start}")

    def _shorten(self, position: int, length: int) -> None:
        first, count = self.runs[position]
        if count == length:
            del self.runs[position]
        else:
            self.runs[position] = first + length, count - length


class Place(msgspec.Struct):
    """Where an inode and its content are."""

    number: int
    size: int = 0
    """Bytes of the content: a file's, a symlink's target, the blocks of a directory."""
    runs: tuple[Run, ...] = ()
    """Blocks of the content that are not holes."""
    has_xattr_block: bool = False
    extents: Sequence[Extent] = ()
    tree_blocks: Sequence[int] = ()
    """Where the extents are that the inode has no room for."""
    xattr_block: int = 0

    @property
    def data_blocks(self) -> int:
        """How many the runs have."""
        blocks = 0
        for _, length in self.runs:
            blocks += length
        return blocks

    @property
    def blocks(self) -> int:
        """All that the inode uses."""
        return self.data_blocks + len(self.tree_blocks) + self.has_xattr_block


class Group(msgspec.Struct, frozen=True):
    """Where the metadata of a group is."""

    block_bitmap: int
    inode_bitmap: int
    inode_table: int


class Plan(msgspec.Struct, frozen=True):
    """All decisions."""

    uuid: bytes
    hash_seed: bytes
    geometry: Geometry
    groups: list[Group]
    places: dict[Node, Place]
    """In the order of `Tree.walk`."""
    links: Counter[Node]
    """Names of each node."""
    parents: dict[Directory, Directory]
    indexes: dict[Directory, list[Leaf]]
    """Of the directories that need more than one block."""
    journal: Place
    resize_block: int
    """The block that leads to the reserved descriptors."""
    free: list[Run]

    @property
    def last_inode(self) -> int:
        """The highest number in use; so are all below it."""
        return max(place.number for place in self.places.values())


def plan(tree: Tree, buffer_mb: int, epoch: int) -> Plan:
    """A filesystem with all of the tree and ``buffer_mb`` MiB of free space (0: as `free_space`).

    The tree must have a /lost+found. Where the last group would be too small there is a little
    more. Raises `CorruptError`, with the path, for what ext4 cannot hold; `FledgeError` if a
    content cannot be read.
    """
    entries = list(tree.walk())
    links = Counter(node for _, node in entries)
    places = _places(entries, links)
    identity = _identity(entries, buffer_mb, epoch)
    hash_seed = uuid.UUID(bytes=identity[16:], version=4).bytes
    indexes: dict[Directory, list[Leaf]] = {}
    parents = {tree.root: tree.root}
    for path, node in entries:
        if isinstance(node, Directory):
            blocks = LOST_AND_FOUND_BLOCKS if path == LOST_AND_FOUND_PATH else 1
            if not directory.is_linear(node.children):
                indexes[node] = _leaves(path, node, hash_seed)
                blocks = directory.tree_size(len(indexes[node]))
            places[node].size = blocks * BLOCK_SIZE
            places[node].runs = _dense(blocks)
            below = (child for child in node.children.values() if isinstance(child, Directory))
            parents.update(dict.fromkeys(below, node))
    content = sum(place.blocks for place in places.values())
    buffer = -(-free_space(buffer_mb, content * BLOCK_SIZE) // BLOCK_SIZE)
    # The root's number is below that of /lost+found.
    inodes = LOST_AND_FOUND + len(places) - 1 + buffer * BLOCK_SIZE // BYTES_PER_SPARE_INODE
    needed = content + buffer
    while True:
        divided = geometry(needed + 1, inodes)
        _check_size(divided)
        space, groups, journal, resize_block = _lay_metadata(divided)
        for place in places.values():
            _lay(place, space)
        if space.free >= buffer:
            break
        needed += buffer - space.free
    return Plan(
        uuid=uuid.UUID(bytes=identity[:16], version=4).bytes,
        hash_seed=hash_seed,
        geometry=divided,
        groups=groups,
        places=places,
        links=links,
        parents=parents,
        indexes=indexes,
        journal=journal,
        resize_block=resize_block,
        free=space.runs,
    )


def _places(entries: Iterable[tuple[bytes, Node]], links: Counter[Node]) -> dict[Node, Place]:
    """An inode for each node; with the size and the blocks of its content, if no directory."""
    places: dict[Node, Place] = {}
    numbers = itertools.count(LOST_AND_FOUND + 1)
    own = {b"": ROOT, LOST_AND_FOUND_PATH: LOST_AND_FOUND}
    for path, node in entries:
        if node in places:
            continue
        place = places[node] = Place(own.get(path) or next(numbers))
        if isinstance(node, File):
            place.size = content_size(node.content)
            place.runs = _runs(node.content)
        elif isinstance(node, Symlink):
            place.size = len(node.target)
            place.runs = _dense(place.size >= INODE_BLOCK_SIZE)
        _check(path, node, place.size, links[node])
        if node.xattrs:
            place.has_xattr_block = _has_xattr_block(path, node)
    return places


def _check_size(divided: Geometry) -> None:
    if divided.blocks > MAX_BLOCKS:
        raise CorruptError(
            f"the tree and its free space take {divided.blocks} blocks of {BLOCK_SIZE} bytes;"
            f" ext4 takes {MAX_BLOCKS}",
            "Lower size_buffer_mb, or leave the largest files out.",
        )


def _check(path: bytes, node: Node, size: int, links: int) -> None:
    problem = None
    if links > MAX_LINKS:
        problem = f"{links} hard links; ext4 takes {MAX_LINKS}"
    elif path == LOST_AND_FOUND_PATH and not isinstance(node, Directory):
        problem = "ext4 needs a directory there"
    elif size > MAX_FILE_SIZE:
        problem = f"a file of {size} bytes; ext4 takes {MAX_FILE_SIZE}"
    if problem:
        raise CorruptError(f"/{printable(path)}: {problem}")


def _leaves(path: bytes, node: Directory, hash_seed: bytes) -> list[Leaf]:
    leaves = directory.leaves(node.children, hash_seed)
    if len(leaves) > directory.MAX_LEAVES:
        raise CorruptError(
            f"/{printable(path)}: {len(leaves)} blocks of names in one directory;"
            f" ext4 takes {directory.MAX_LEAVES}"
        )
    return leaves


def _has_xattr_block(path: bytes, node: Node) -> bool:
    try:
        return bool(xattr.pack(node.xattrs).block)
    except xattr.XattrError as error:
        raise CorruptError(f"/{printable(path)}: {error}") from None


def _runs(content: Content) -> tuple[Run, ...]:
    """The blocks of a file that are not holes."""
    if isinstance(content, Sparse):
        return tuple(_merged(content.extents))
    return _dense(-(-content_size(content) // BLOCK_SIZE))


@lru_cache
def _dense(blocks: int) -> tuple[Run, ...]:
    return ((0, blocks),) if blocks else ()


def _merged(extents: Iterable[tuple[int, int, int]]) -> Iterator[Run]:
    start = end = 0
    for offset, _, length in extents:
        first, last = offset // BLOCK_SIZE, -(-(offset + length) // BLOCK_SIZE)
        if first > end:
            if end > start:
                yield start, end - start
            start = first
        end = max(end, last)
    if end > start:
        yield start, end - start


def _lay_metadata(divided: Geometry) -> tuple[Space, list[Group], Place, int]:
    """The groups, the journal, and the block that leads to the reserved descriptors."""
    space = Space(divided.blocks)
    for group in divided.copies:
        space.reserve(group * BLOCKS_PER_GROUP, divided.copy_blocks)
    groups: list[Group] = []
    for flex in range(0, divided.groups, GROUPS_PER_FLEX):
        members = range(flex, min(flex + GROUPS_PER_FLEX, divided.groups))
        start = flex * BLOCKS_PER_GROUP
        block_bitmaps = [space.take_from(start, 1) for _ in members]
        inode_bitmaps = [space.take_from(start, 1) for _ in members]
        tables = [space.take_from(start, divided.table_blocks) for _ in members]
        groups += map(Group, block_bitmaps, inode_bitmaps, tables)
    blocks = divided.journal_blocks
    journal = Place(JOURNAL, blocks * BLOCK_SIZE, _dense(blocks))
    _lay(journal, space)
    return space, groups, journal, space.take(1)[0][0]


def _lay(place: Place, space: Space) -> None:
    if place.has_xattr_block:
        place.xattr_block = space.take(1)[0][0]
    if not place.runs:
        return
    pieces = space.take(place.data_blocks)
    if len(pieces) == len(place.runs) == 1 and pieces[0][1] <= MAX_EXTENT:
        place.extents = (Extent(place.runs[0][0], *pieces[0]),)
        return
    place.extents = tuple(_extents(place.runs, pieces))
    tree_blocks = range(extent_tree_blocks(len(place.extents)))
    place.tree_blocks = [space.take(1)[0][0] for _ in tree_blocks]


def _extents(runs: Iterable[Run], pieces: list[Run]) -> Iterator[Extent]:
    """Logical and physical blocks side by side, in pieces as long as an extent can be."""
    remaining = iter(pieces)
    physical = available = 0
    for start, count in runs:
        logical, end = start, start + count
        while logical < end:
            if not available:
                physical, available = next(remaining)
            length = min(end - logical, available, MAX_EXTENT)
            yield Extent(logical, physical, length)
            logical, physical, available = logical + length, physical + length, available - length


def _identity(entries: Iterable[tuple[bytes, Node]], buffer_mb: int, epoch: int) -> bytes:
    """What makes an image this one: 32 bytes from all that is in it."""
    digest = sha256(repr((buffer_mb, epoch)).encode())
    numbers: dict[Node, int] = {}
    for path, node in entries:
        if node in numbers:
            digest.update(repr((path, numbers[node])).encode())
            continue
        numbers[node] = len(numbers)
        holds: object = None
        if isinstance(node, File):
            holds = _content_identity(node.content)
        elif isinstance(node, Symlink):
            holds = node.target
        elif isinstance(node, Device):
            holds = node.major, node.minor
        metadata = (node.file_type, node.mode, node.uid, node.gid, node.mtime_ns)
        xattrs = sorted(node.xattrs.items()) if node.xattrs else []
        digest.update(repr((path, metadata, xattrs, holds)).encode())
    return digest.digest()


def _content_identity(content: Content) -> object:
    """What tells a content from all others: by a digest that is known, if there is one."""
    if isinstance(content, Span) and content.file_sha256 and not content.sha256:
        return content.file_sha256, content.offset, content.size
    if isinstance(content, Sparse) and content.file_sha256:
        return content.file_sha256, content.size, content.extents
    if isinstance(content, Sparse):
        digest = sha256()
        for _, piece in read_extents(content):
            digest.update(piece)
        ends = [(offset, length) for offset, _, length in content.extents]
        return digest.hexdigest(), content.size, ends
    return content_sha256(content)
