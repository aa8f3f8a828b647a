"""How large an ext4 filesystem must be, and how it is divided.

Documentation/filesystems/ext4 of the kernel has the on-disk format; the places where
mke2fs decides are named after its functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fledge.folder import BLOCK_SIZE, Written
from fledge.tree import Directory, File, Node, Symlink, Tree

INODE_SIZE = 256
INODES_PER_BLOCK = BLOCK_SIZE // INODE_SIZE
BLOCKS_PER_GROUP = 8 * BLOCK_SIZE
DESCRIPTOR_SIZE = 64
MAX_INODES_PER_GROUP = 8 * BLOCK_SIZE

LOST_AND_FOUND = 11
"""The inode that mke2fs gives to /lost+found: the first that is not reserved."""

LOST_AND_FOUND_BLOCKS = 4

BYTES_PER_SPARE_INODE = 16384
"""mke2fs's default ratio, for the free space."""

MIN_LAST_GROUP = 64
"""Data blocks that the last group must have: with fewer than 50 mke2fs drops it."""

JOURNAL_EXTENTS = 1
"""A block for the extents of the journal, where they do not fit in its inode."""

MIB = 1 << 20

DIRECTORY_BLOCK_TAIL = 12
"""The checksum at the end of every block of a directory."""

FAST_SYMLINK = 60
"""A symlink whose target is shorter than this is in its inode."""

EXTENTS_IN_INODE = 4
EXTENTS_PER_BLOCK = (BLOCK_SIZE - 12 - 4) // 12
MAX_EXTENT = 1 << 15
"""Blocks in one extent."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What mke2fs is told."""

    blocks: int
    inodes: int
    journal_mb: int


def layout(tree: Tree, written: Mapping[Node, Written], buffer_mb: int) -> Layout:
    """The layout that leaves ``buffer_mb`` MiB free, and inodes to use them.

    With 0 it is a quarter of what the tree holds, from 64 MiB to 1 GiB. Where only an upper
    bound is known (extent blocks, order of directory entries) that is what counts, so there
    is rather a little more free space.
    """
    nodes = {node for _, node in tree.walk()}
    content = sum(_blocks(node, written) for node in nodes)
    buffer = buffer_mb * MIB // BLOCK_SIZE
    if buffer == 0:
        buffer = min(max(content // 4, 64 * MIB // BLOCK_SIZE), 1024 * MIB // BLOCK_SIZE)
    inodes = LOST_AND_FOUND + len(nodes) + buffer * BLOCK_SIZE // BYTES_PER_SPARE_INODE
    needed = content + LOST_AND_FOUND_BLOCKS + buffer
    blocks = max(needed, (-(-inodes // MAX_INODES_PER_GROUP) - 1) * BLOCKS_PER_GROUP + 1)
    while (enough := _total(needed, blocks, inodes)) > blocks:
        blocks = enough
    return Layout(blocks, inodes, _journal_mb(blocks))


def _total(needed: int, blocks: int, inodes: int) -> int:
    """Blocks for ``needed`` ones and all that a filesystem of ``blocks`` has beside them."""
    groups = -(-blocks // BLOCKS_PER_GROUP)
    backups = sum(_has_superblock(group) for group in range(groups))
    table = -(-inodes // (groups * INODES_PER_BLOCK))
    superblock = 1 + -(-groups * DESCRIPTOR_SIZE // BLOCK_SIZE)
    journal = _journal_mb(blocks) * MIB // BLOCK_SIZE
    total = needed + journal + JOURNAL_EXTENTS + backups * superblock + groups * (2 + table)
    last = (total - 1) % BLOCKS_PER_GROUP + 1
    return total + max(0, superblock + 2 + table + MIN_LAST_GROUP - last)


def _blocks(node: Node, written: Mapping[Node, Written]) -> int:
    """Blocks that an inode needs for its data, extents and xattrs, at most."""
    xattrs = 1 if node.xattrs else 0
    if isinstance(node, Directory):
        blocks = _directory_blocks(node)
        return blocks + _extent_blocks(blocks) + xattrs
    if isinstance(node, File):
        data = written[node]
        return data.blocks + _extent_blocks(data.runs + 2 * (data.blocks // MAX_EXTENT)) + xattrs
    if isinstance(node, Symlink) and len(node.target) >= FAST_SYMLINK:
        return 1 + xattrs
    return xattrs


def _directory_blocks(directory: Directory) -> int:
    """Blocks of its entries (each 8 bytes and the name, padded), filled one after the other."""
    blocks, used = 1, 12 + 12
    for name in sorted(directory.children):
        size = 8 + len(name) + -len(name) % 4
        if used + size > BLOCK_SIZE - DIRECTORY_BLOCK_TAIL:
            blocks, used = blocks + 1, 0
        used += size
    return blocks


def _extent_blocks(extents: int) -> int:
    """Blocks of an extent tree; libext2fs may leave them half empty."""
    if extents <= EXTENTS_IN_INODE:
        return 0
    blocks = level = -(-extents // (EXTENTS_PER_BLOCK // 2))
    while level > EXTENTS_IN_INODE:
        level = -(-level // (EXTENTS_PER_BLOCK // 2))
        blocks += level
    return blocks


def _has_superblock(group: int) -> bool:
    """Whether a group has a backup (sparse_super): 0, 1, and powers of 3, 5 and 7."""
    if group <= 1:
        return True
    for base in (3, 5, 7):
        power = base
        while power < group:
            power *= base
        if power == group:
            return True
    return False


def _journal_mb(blocks: int) -> int:
    """MiB of journal for a filesystem of that size (ext2fs_default_journal_size)."""
    for limit, size in ((1 << 15, 4), (1 << 18, 16), (1 << 19, 32), (1 << 20, 64)):
        if blocks < limit:
            return size
    return 128
