"""What every filesystem of inodes answers alike about an image that was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic

import msgspec

from fledge.tree.content import Content, Span, Sparse
from fledge.tree.digest import Digest
from fledge.tree.inodes import Facts, Image, Superblock
from fledge.tree.nodes import Directory, Node, Tree


class InodeStat(msgspec.Struct, frozen=True):
    """The fields of stat(2) that are in an inode."""

    inode: int
    links: int
    size: int


class InodeContents(msgspec.Struct, Generic[Superblock, Facts], frozen=True):
    """An image that was read. A format adds what `fledge.formats.Contents` asks for beside it."""

    image: Image[Superblock, Facts]

    @property
    def tree(self) -> Tree:
        """The files in the image."""
        return self.image.tree

    @property
    def sockets(self) -> Sequence[bytes]:
        """The paths of sockets, which are not in the tree."""
        return self.image.sockets

    def stat(self, node: Node) -> InodeStat:
        """Return the number, links and size in the node's inode."""
        inode = self.image.inodes[node]
        return InodeStat(inode.number, inode.links, inode.size)

    def node_facts(self, node: Node) -> Mapping[str, object]:
        """Return the fields of the node's inode that do not show in the tree."""
        inode = self.image.inodes[node]
        return {
            "inode number": inode.number,
            "links": inode.links,
            "size of directory": inode.size if isinstance(node, Directory) else None,
        }

    def order(self) -> Sequence[bytes]:
        """Return nothing: the directories give the order."""
        return ()

    def uncompressed(self) -> Sequence[Digest]:
        """Return nothing: an image is not compressed as a whole."""
        return ()


def position(content: Content) -> object:
    """Return where a content is in the image: an offset, or the extents of one in pieces.

    None: it is nowhere as it is.
    """
    if isinstance(content, Sparse):
        return [tuple(extent) for extent in content.extents]
    return content.offset if isinstance(content, Span) else None
