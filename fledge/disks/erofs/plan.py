"""Decides where everything goes, before anything is written.

Images are sent and kept in chunks of fixed size, of which only the new ones matter. So a change of
one file changes few other blocks, as in the ext4 images of fledge: inodes, directories and the
contents of files are apart, each in the order of their origin, the lowest layer first. What an
origin adds begins at a multiple of `ALIGNMENT` unless it is small.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import NamedTuple

import msgspec

from fledge.disks.erofs import directory, xattr
from fledge.disks.erofs.compression import INDEX_ALIGNMENT, Codec, Compressed, indexes_size
from fledge.disks.erofs.structures import (
    BLOCK_SIZE,
    CHUNK_ADDRESS,
    INODE,
    MAX_BLOCKS,
    SLOT_SIZE,
    ChunkFormat,
    DataLayout,
)
from fledge.errors import CorruptError, MalformedError
from fledge.tree import NANOSECONDS, Directory, File, Node, Symlink, Tree, identity
from fledge.tree.blocks import Run, data_runs, merged_runs
from fledge.tree.content import Sparse, content_size
from fledge.tree.names import printable

ALIGNMENT = 256
"""Blocks of 1 MiB, the chunk size for which images are laid out."""

FIRST_INODE = BLOCK_SIZE
"""The position of the root's inode in bytes."""

MAX_SIZE = (1 << 63) - 1
"""Bytes of a file; no system call of Linux takes more."""

MAX_SECONDS = 1 << 63
"""Seconds before and after 1970 that a time can have."""


class Chunks(NamedTuple):
    """How a content with holes is divided."""

    bits: int
    """The base-2 logarithm of the blocks in a chunk."""
    total: int
    """The number of chunks, holes included."""
    runs: Sequence[Run]
    """The chunks that are not holes."""

    @property
    def size(self) -> int:
        """Bytes of a chunk."""
        return BLOCK_SIZE << self.bits


class Placement(msgspec.Struct):
    """Where a node goes. All sizes and positions are in bytes, unless they say blocks."""

    size: int = 0
    """The content: of a file, the target of a symlink, the entries of a directory."""
    xattrs: bytes = b""
    """The packed extended attributes, which follow the inode."""
    layout: DataLayout = DataLayout.FLAT_PLAIN
    chunks: Chunks | None = None
    """How a content with holes is divided. None: it has none."""
    compressed: Compressed | None = None
    tail: int = 0
    """The end of the content that is behind the inode."""
    blocks: int = 0
    """Blocks of the content, without the tail."""
    position: int = 0
    """The inode."""
    block: int = 0
    """The first block of the content."""
    number: int = 0
    """The number of the inode, from 1."""

    @property
    def nid(self) -> int:
        """The number by which directories name the inode."""
        return self.position // SLOT_SIZE

    @property
    def head(self) -> int:
        """The inode with its extended attributes."""
        return INODE.size + len(self.xattrs)


class Plan(msgspec.Struct, frozen=True):
    """Everything that is decided before a filesystem is written."""

    uuid: bytes
    placements: dict[Node, Placement]
    """In the order of the inodes."""
    links: Counter[Node]
    """How many names each node has."""
    parents: dict[Directory, Directory]
    """The root is its own parent."""
    codec: Codec | None
    """That of compressed contents, if there are any."""
    shared_xattrs: bytes
    xattr_block: int
    """The first block of shared attributes, or 0."""
    blocks: int
    """Blocks of the filesystem."""

    @property
    def has_chunks(self) -> bool:
        """Whether a content has holes."""
        return any(each.chunks for each in self.placements.values())


def make_plan(tree: Tree, compressed: Mapping[File, Compressed], options: object) -> Plan:
    """Plan a filesystem. The UUID depends on the tree and on ``options``, by their repr.

    Raises `CorruptError`, with the path, for anything that erofs cannot store; `FledgeError` if a
    content cannot be read.
    """
    links = Counter(node for _, node in tree.walk())
    placements: dict[Node, Placement] = {}
    entries: dict[Node, list[bytes]] = {}
    parents = {tree.root: tree.root}
    for path, node in tree.walk():
        if isinstance(node, Directory):
            below = (child for child in node.children.values() if isinstance(child, Directory))
            parents.update(dict.fromkeys(below, node))
        if node not in placements:
            try:
                placements[node] = _content(node, compressed)
                if node.xattrs:
                    entries[node] = [xattr.pack(*each) for each in sorted(node.xattrs.items())]
                _check(node)
            except MalformedError as error:
                raise CorruptError(f"/{printable(path)}: {error}") from error
    nodes = sorted(placements, key=attrgetter("origin"))
    nodes.remove(tree.root)
    nodes.insert(0, tree.root)
    placements = {node: placements[node] for node in nodes}
    shared_xattrs = _place_xattrs(tree, placements, entries)
    end = -(-_place_inodes(placements.values()) // BLOCK_SIZE)
    xattr_block = end if shared_xattrs else 0
    end = _place_contents(placements, end - (-len(shared_xattrs) // BLOCK_SIZE))
    if end > MAX_BLOCKS:
        raise CorruptError(
            f"the tree takes {end} blocks of {BLOCK_SIZE} bytes; erofs takes {MAX_BLOCKS}",
            "Leave the largest files out.",
        )
    return Plan(
        uuid=identity.tree_uuid(tree, options),
        placements=placements,
        links=links,
        parents=parents,
        codec=next((each.codec for each in compressed.values()), None),
        shared_xattrs=shared_xattrs,
        xattr_block=xattr_block,
        blocks=end,
    )


def _check(node: Node) -> None:
    """Raise `MalformedError` if erofs cannot store a number of a node."""
    if not -MAX_SECONDS <= node.mtime_ns // NANOSECONDS < MAX_SECONDS:
        raise MalformedError("its time has more than 64 bits")
    if isinstance(node, File) and content_size(node.content) > MAX_SIZE:
        raise MalformedError(f"a file of {content_size(node.content)} bytes; Linux has {MAX_SIZE}")


def _content(node: Node, compressed: Mapping[File, Compressed]) -> Placement:
    """Decide how the content of a node is stored. Its tail is decided later."""
    if isinstance(node, Directory):
        return _flat(directory.size(sorted((b".", b"..", *node.children))))
    if isinstance(node, Symlink):
        return _flat(len(node.target))
    if not isinstance(node, File):
        return Placement()
    size = content_size(node.content)
    if isinstance(node.content, Sparse) and (chunks := _chunks(node.content)):
        stored = sum(
            min(run.length * chunks.size, size - run.start * chunks.size) for run in chunks.runs
        )
        return Placement(
            size, layout=DataLayout.CHUNK_BASED, chunks=chunks, blocks=-(-stored // BLOCK_SIZE)
        )
    if content := compressed.get(node):
        return Placement(
            size,
            layout=DataLayout.COMPRESSED_FULL,
            compressed=content,
            blocks=content.blocks,
        )
    return _flat(size)


def _flat(size: int) -> Placement:
    return Placement(size, blocks=-(-size // BLOCK_SIZE))


def _chunks(content: Sparse) -> Chunks | None:
    """Divide a content into chunks, so that it takes the least space. None: it has no holes."""
    runs = list(data_runs(content.extents))
    blocks = -(-content.size // BLOCK_SIZE)
    if sum(run.length for run in runs) == blocks:
        return None
    choices: list[tuple[int, Chunks]] = []
    for bits in range(ChunkFormat.BLOCK_BITS + 1):
        chunks = Chunks(bits, -(-blocks >> bits), runs)
        stored = sum(run.length for run in runs) * chunks.size
        choices.append((chunks.total * CHUNK_ADDRESS.size + stored, chunks))
        if chunks.total == 1:
            break
        runs = list(
            merged_runs((run.start // 2, (run.start + run.length + 1) // 2) for run in runs)
        )
    return min(choices, key=itemgetter(0))[1]


def _place_xattrs(
    tree: Tree, placements: Mapping[Node, Placement], entries: Mapping[Node, list[bytes]]
) -> bytes:
    """Put extended attributes behind the inodes. Return those that several nodes share."""
    uses = Counter(entry for each in entries.values() for entry in each)
    ids: dict[bytes, int] = {}
    end = 0
    for node, placement in placements.items():
        shared: list[int] = []
        own: list[bytes] = []
        for entry in entries.get(node, ()):
            if uses[entry] == 1 or len(shared) == xattr.MAX_SHARED:
                own.append(entry)
                continue
            if entry not in ids:
                ids[entry] = end // xattr.UNIT
                end += len(entry)
            shared.append(ids[entry])
        if shared or own:
            try:
                placement.xattrs = xattr.pack_body(shared, own)
            except MalformedError as error:
                path = next(path for path, each in tree.walk() if each is node)
                raise CorruptError(f"/{printable(path)}: {error}") from error
    return b"".join(ids)


def _place_inodes(placements: Iterable[Placement]) -> int:
    """Give all inodes their positions, and return where the last one ends."""
    position = FIRST_INODE
    for number, placement in enumerate(placements, 1):
        placement.number = number
        if placement.layout is DataLayout.FLAT_PLAIN:
            tail = placement.size % BLOCK_SIZE
            if tail and placement.head + tail <= BLOCK_SIZE:
                placement.layout = DataLayout.FLAT_INLINE
                placement.tail = tail
                placement.blocks -= 1
                # Neither the tail nor, for a symlink, what is before it may cross a block.
                if position % BLOCK_SIZE + placement.head + tail > BLOCK_SIZE:
                    position += -position % BLOCK_SIZE
        placement.position = position
        position += placement.head + placement.tail
        if placement.chunks:
            position += placement.chunks.total * CHUNK_ADDRESS.size
        elif placement.compressed:
            position += -position % INDEX_ALIGNMENT
            position += indexes_size(-(-placement.size // BLOCK_SIZE))
        position += -position % SLOT_SIZE
    return position


def _place_contents(placements: Mapping[Node, Placement], block: int) -> int:
    """Give all contents their blocks from ``block`` on, and return where the last one ends.

    Those of directories and symlinks come first.
    """
    others = [each for node, each in placements.items() if not isinstance(node, File)]
    block = _place(others, block)
    files = ((node, each) for node, each in placements.items() if isinstance(node, File))
    for _, group in itertools.groupby(files, lambda item: item[0].origin):
        members = [each for _, each in group]
        if sum(each.blocks for each in members) >= ALIGNMENT:
            block += -block % ALIGNMENT
        block = _place(members, block)
    return block


def _place(placements: Iterable[Placement], block: int) -> int:
    for placement in placements:
        if placement.blocks:
            placement.block = block
            block += placement.blocks
    return block
