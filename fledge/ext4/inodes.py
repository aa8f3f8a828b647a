"""The inodes of a filesystem: which number each node has, and how many blocks it needs.

Numbers are in the order of the nodes' origins; in each origin, in that of `Tree.walk`.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Sequence

import msgspec

from fledge.errors import CorruptError, MalformedError
from fledge.ext4 import directory, xattr
from fledge.ext4.constants import LOST_AND_FOUND_PATH
from fledge.ext4.directory import Leaf
from fledge.ext4.structures import (
    BLOCK_SIZE,
    HASH_SEED,
    INODE_BLOCK_SIZE,
    LOST_AND_FOUND,
    ROOT,
    Extent,
)
from fledge.tree import Directory, File, Node, Symlink, Tree
from fledge.tree.blocks import Run, data_runs
from fledge.tree.content import Sparse, content_size
from fledge.tree.names import printable

MAX_LINKS = 65000
"""Names that one inode can have (EXT4_LINK_MAX)."""

MAX_FILE_SIZE = ((1 << 32) - 1) * BLOCK_SIZE
"""Bytes of a file, 16 TiB: block numbers in a file have 32 bits."""

LOST_AND_FOUND_BLOCKS = 4
"""Blocks of /lost+found, so that e2fsck can add entries without allocating any
(create_lost_and_found in mke2fs)."""


class ExtentTree(msgspec.Struct, frozen=True):
    """Where a content is on disk."""

    extents: Sequence[Extent] = ()
    node_blocks: Sequence[int] = ()
    """The blocks of its nodes, without the root in the inode."""


class Inodes:
    """All inodes: their nodes, sizes and blocks.

    There may be millions, so there is no object for each: fields that all inodes have are in lists
    and arrays by number, and fields that few have are in dictionaries.
    """

    def __init__(self, count: int) -> None:
        """Inodes count from 1, so that index 0 of each list is unused."""
        self.nodes: list[Node | None] = [None] * (count + 1)
        """None: reserved, or the filesystem's own."""
        self.numbers: dict[Node, int] = {}
        self.sizes = array("Q", bytes(8 * (count + 1)))
        """Bytes of the content: of a file, of the target of a symlink, of the blocks of a
        directory."""
        self.blocks = array("Q", bytes(8 * (count + 1)))
        """Blocks of the content that are not holes."""
        self.starts = array("Q", bytes(8 * (count + 1)))
        """The first of these blocks on disk, of a content that is in one piece there."""
        self.trees: dict[int, ExtentTree] = {}
        """Of all other contents."""
        self.links: dict[int, int] = {}
        """How many names an inode has, if not one."""
        self.runs: dict[int, tuple[Run, ...]] = {}
        """Blocks of a content with holes that are not holes, counted from its beginning."""
        self.xattr_blocks: dict[int, int] = {}
        """The block with extended attributes, if they need one."""
        self.parents: dict[int, int] = {}
        """The parent of each directory. The root is its own."""
        self.leaves: dict[int, list[Leaf]] = {}
        """The hash tree of each directory that needs more than one block."""
        self.metadata = array("I")
        """Inodes with blocks that are not a file's content, in the order of these blocks."""
        self.files: list[array[int]] = []
        """Files with blocks in the order of these, for each origin."""

    @property
    def last(self) -> int:
        """The highest number of an inode in use. All lower ones are in use or reserved."""
        return len(self.nodes) - 1

    def used_blocks(self, number: int) -> int:
        """All blocks that an inode uses."""
        tree = self.trees.get(number)
        nodes = len(tree.node_blocks) if tree else 0
        return self.blocks[number] + nodes + (number in self.xattr_blocks)

    def extent_tree(self, number: int) -> ExtentTree:
        """Where the content of an inode is."""
        if number in self.trees or not self.blocks[number]:
            return self.trees.get(number, ExtentTree())
        return ExtentTree([Extent(0, self.blocks[number], self.starts[number])])


def number_inodes(tree: Tree) -> Inodes:
    """An inode for each node. Where their blocks are is still missing.

    Raises `CorruptError`, with the path, for a node that ext4 cannot hold.
    """
    lost_and_found = tree.root.children[LOST_AND_FOUND_PATH]
    if not isinstance(lost_and_found, Directory):
        advice = "Rename it in the image."
        raise _unfit(tree, lost_and_found, "ext4 needs a directory there", advice)
    by_origin: dict[int, list[Node]] = {}
    names: dict[Node, int] = {}
    for _, node in tree.walk():
        if node in names:
            names[node] += 1
        else:
            names[node] = 1
            by_origin.setdefault(node.origin, []).append(node)
    # The root's number is below that of /lost+found.
    inodes = Inodes(LOST_AND_FOUND + len(names) - 2)
    fixed: dict[Node, int] = {tree.root: ROOT, lost_and_found: LOST_AND_FOUND}
    free = itertools.count(LOST_AND_FOUND + 1)
    for origin in sorted(by_origin):
        files = array("I")
        for node in by_origin[origin]:
            number = fixed.get(node) or next(free)
            _add(inodes, number, node, tree)
            if (links := names[node]) > 1:
                inodes.links[number] = _checked_links(tree, node, links)
            has_blocks, is_file = inodes.blocks[number], isinstance(node, File)
            if has_blocks and is_file:
                files.append(number)
            if (has_blocks and not is_file) or number in inodes.xattr_blocks:
                inodes.metadata.append(number)
            names[node] = number
        inodes.files.append(files)
    inodes.numbers = names
    _add_parents(inodes)
    return inodes


def _add(inodes: Inodes, number: int, node: Node, tree: Tree) -> None:
    """Add the inode of a node, with its size and how many blocks it needs."""
    inodes.nodes[number] = node
    if isinstance(node, File):
        _add_file(inodes, number, node, tree)
    elif isinstance(node, Symlink):
        inodes.sizes[number] = len(node.target)
        inodes.blocks[number] = len(node.target) >= INODE_BLOCK_SIZE
    elif isinstance(node, Directory):
        _add_directory(inodes, number, node, tree)
    if node.xattrs and _has_xattr_block(tree, node):
        inodes.xattr_blocks[number] = 0  # it gets one with the other blocks


def _add_file(inodes: Inodes, number: int, file: File, tree: Tree) -> None:
    content = file.content
    size = content_size(content)
    if size > MAX_FILE_SIZE:
        raise _unfit(
            tree,
            file,
            f"a file of {size} bytes; ext4 takes {MAX_FILE_SIZE}",
            "Leave it out, or make it smaller.",
        )
    inodes.sizes[number] = size
    if isinstance(content, Sparse):
        runs = inodes.runs[number] = tuple(data_runs(content.extents))
        inodes.blocks[number] = sum(run.length for run in runs)
    else:
        inodes.blocks[number] = -(-size // BLOCK_SIZE)


def _add_directory(inodes: Inodes, number: int, directory_: Directory, tree: Tree) -> None:
    blocks = LOST_AND_FOUND_BLOCKS if number == LOST_AND_FOUND else 1
    if not directory.is_linear(directory_.children):
        leaves = inodes.leaves[number] = _leaves(tree, directory_)
        blocks = directory.tree_size(len(leaves))
    inodes.blocks[number] = blocks
    inodes.sizes[number] = blocks * BLOCK_SIZE


def _add_parents(inodes: Inodes) -> None:
    """Add the parents of all directories, and how many links these have."""
    inodes.parents[ROOT] = ROOT
    for number in inodes.metadata:
        node = inodes.nodes[number]
        if isinstance(node, Directory):
            below = [child for child in node.children.values() if isinstance(child, Directory)]
            inodes.parents.update((inodes.numbers[child], number) for child in below)
            # With dir_nlink, 1 stands for more links than can be counted.
            inodes.links[number] = 2 + len(below) if 2 + len(below) <= MAX_LINKS else 1


def _checked_links(tree: Tree, node: Node, links: int) -> int:
    if links > MAX_LINKS:
        problem = f"{links} hard links; ext4 takes {MAX_LINKS}"
        raise _unfit(tree, node, problem, "Copy the file for some of its names.")
    return links


def _leaves(tree: Tree, node: Directory) -> list[Leaf]:
    leaves = directory.leaves(node.children, HASH_SEED)
    if len(leaves) > directory.MAX_LEAVES:
        raise _unfit(
            tree,
            node,
            f"{len(leaves)} blocks of names in one directory; ext4 takes {directory.MAX_LEAVES}",
            "Spread its entries over several directories.",
        )
    return leaves


def _has_xattr_block(tree: Tree, node: Node) -> bool:
    try:
        return bool(xattr.pack(node.xattrs).block)
    except MalformedError as error:
        advice = "Remove extended attributes of it, or shorten them."
        raise _unfit(tree, node, str(error), advice) from error


def _unfit(tree: Tree, node: Node, problem: str, advice: str) -> CorruptError:
    """The error for a node that ext4 cannot hold."""
    path = next(path for path, each in tree.walk() if each is node)
    return CorruptError(f"/{printable(path)}: {problem}", advice)
