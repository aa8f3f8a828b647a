"""The facts about an erofs image that are not in its tree: superblock and fields of inodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import msgspec

from fledge.disks.erofs.reader import Image, InodeFacts
from fledge.disks.erofs.structures import DataLayout
from fledge.tree import Directory, File, Node, Tree
from fledge.tree.content import Content, Span, Sparse
from fledge.tree.digest import Digest


class InodeStat(msgspec.Struct, frozen=True):
    """The fields of stat(2)."""

    inode: int
    links: int
    size: int


class ErofsContents(msgspec.Struct, frozen=True):
    """An image that was read. Implements `fledge.formats.Contents`."""

    image: Image

    @property
    def tree(self) -> Tree:
        """The files in the image."""
        return self.image.tree

    @property
    def sockets(self) -> Sequence[bytes]:
        """The paths of sockets, which are not in the tree."""
        return self.image.sockets

    def stat(self, node: Node) -> InodeStat:
        """Return the inode number, number of links and size of a node."""
        inode = self._inode(node)
        return InodeStat(inode.nid, inode.links, inode.size)

    def _inode(self, node: Node) -> InodeFacts:
        return self.image.inodes[node]

    def facts(self) -> Mapping[str, object]:
        """Return every field of the superblock, and the features by name."""
        superblock = self.image.superblock
        fields = superblock._asdict()
        for name in ("feature_compat", "feature_incompat", "checksum"):
            del fields[name]
        fields["uuid"] = superblock.uuid.hex()
        fields["volume_name"] = superblock.volume_name.rstrip(b"\0")
        return {
            "features": superblock.features,
            **{f"superblock {name}": value for name, value in fields.items()},
        }

    def node_facts(self, node: Node) -> Mapping[str, object]:
        """Return the fields of the node's inode that are not in the tree."""
        inode = self._inode(node)
        is_compressed = _is_compressed(inode)
        return {
            "inode number": inode.nid,
            "number for 32 bits": inode.number,
            "links": inode.links,
            "layout": _layout(inode),
            "extended": inode.is_extended,
            "size of directory": inode.size if isinstance(node, Directory) else None,
            "place of content": _position(node.content)
            if isinstance(node, File) and not is_compressed
            else None,
        }

    def order(self) -> Sequence[bytes]:
        """Return nothing: the directories give the order."""
        return ()

    def uncompressed(self) -> Sequence[Digest]:
        """Return nothing: files are compressed one by one."""
        return ()

    def describe(self) -> Mapping[str, Any]:
        """Return the superblock, for ``inspect --json``."""
        superblock = self.image.superblock
        return {
            "filesystem": {
                "uuid": str(UUID(bytes=superblock.uuid)),
                "label": superblock.volume_name.rstrip(b"\0").decode(errors="replace"),
                "features": superblock.features,
                "block_size": superblock.block_size,
                "blocks": superblock.blocks,
                "inodes": superblock.inodes,
                "compressed_files": self._compressed_files,
            }
        }

    def describe_node(self, node: Node) -> Mapping[str, Any]:
        """Return the layout of the node's content, for ``inspect --json``."""
        return {"layout": _layout(self._inode(node))}

    def summary(self) -> Sequence[tuple[str, str]]:
        """Return inodes and features."""
        superblock = self.image.superblock
        return [
            ("inodes", f"{superblock.inodes}, {self._compressed_files} of them compressed"),
            ("features", " ".join(superblock.features)),
        ]

    @property
    def _compressed_files(self) -> int:
        return sum(map(_is_compressed, self.image.inodes.values()))


def _layout(inode: InodeFacts) -> str:
    return DataLayout(inode.layout).name.lower().replace("_", "-")


def _is_compressed(inode: InodeFacts) -> bool:
    return inode.layout in (DataLayout.COMPRESSED_FULL, DataLayout.COMPRESSED_COMPACT)


def _position(content: Content) -> object:
    """Return where a content is in the image: an offset, or the extents of one in pieces."""
    if isinstance(content, Sparse):
        return [tuple(extent) for extent in content.extents]
    return content.offset if isinstance(content, Span) else None
