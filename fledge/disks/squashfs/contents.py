"""The facts about a squashfs image that are not in its tree: superblock and fields of inodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fledge.disks.squashfs.reader import InodeFacts
from fledge.disks.squashfs.structures import NONE, Codec, Flag, Superblock
from fledge.report import counted, human_size
from fledge.tree import Node
from fledge.tree.inode_contents import InodeContents


class SquashfsContents(InodeContents[Superblock, InodeFacts], frozen=True):
    """An image that was read. Implements `fledge.formats.Contents`."""

    def facts(self) -> Mapping[str, object]:
        """Return the fields of the superblock, but for where the tables are; flags by name."""
        superblock = self.image.superblock
        return {
            "compression": _codec(superblock.compression),
            "flags": _flags(superblock.flags),
            "superblock mkfs_time": superblock.mkfs_time,
            "superblock block_size": superblock.block_size,
            "superblock bytes_used": superblock.bytes_used,
            "superblock inodes": superblock.inodes,
            "superblock fragments": superblock.fragments,
            "superblock ids": superblock.ids,
        }

    def node_facts(self, node: Node) -> Mapping[str, object]:
        """Return the fields of the node's inode that do not show in the tree."""
        inode = self.image.inodes[node]
        return {
            **super().node_facts(node),
            "position of first block": inode.start,
            "place in fragment block": inode.fragment,
        }

    def describe(self) -> Mapping[str, Any]:
        """Return the superblock, for ``inspect --json``."""
        superblock = self.image.superblock
        return {
            "filesystem": {
                "compression": _codec(superblock.compression),
                "block_size": superblock.block_size,
                "bytes_used": superblock.bytes_used,
                "mkfs_time": superblock.mkfs_time,
                "inodes": superblock.inodes,
                "fragments": superblock.fragments,
                "ids": superblock.ids,
                "has_export_table": superblock.export_table != NONE,
                "has_xattrs": superblock.xattr_table != NONE,
                "flags": _flags(superblock.flags),
            }
        }

    def describe_node(self, node: Node) -> Mapping[str, Any]:
        """Return where the node's data is, for ``inspect --json``."""
        inode = self.image.inodes[node]
        fragment, offset = inode.fragment or (None, None)
        return {"start": inode.start, "fragment": fragment, "fragment_offset": offset}

    def summary(self) -> Sequence[tuple[str, str]]:
        """Return the compression, the size, and the number of inodes."""
        superblock = self.image.superblock
        codec = _codec(superblock.compression)
        return [
            ("compression", f"{codec}, in blocks of {human_size(superblock.block_size)}"),
            ("used", human_size(superblock.bytes_used)),
            ("inodes", f"{superblock.inodes}, {counted(superblock.fragments, 'fragment block')}"),
            ("flags", " ".join(_flags(superblock.flags))),
        ]


def _codec(number: int) -> str:
    return Codec(number).name.lower()


def _flags(flags: int) -> list[str]:
    """Return the names of flags; a number for those that have none."""
    names = [str(each.name).lower() for each in Flag if flags & each]
    unknown = flags & ~sum(Flag)
    return [*names, *([f"{unknown:#x}"] if unknown else [])]
