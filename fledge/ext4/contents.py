"""The facts about an ext4 image that are not in its tree: superblock and fields of inodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fledge.ext4.reader import InodeFacts
from fledge.ext4.structures import Superblock
from fledge.report import human_size
from fledge.tree import File, Node
from fledge.tree.inode_contents import InodeContents, position

_TEXT_FIELDS = ("volume_name", "last_mounted")
"""The fields of the superblock that hold text, filled up with NULs."""


class Ext4Contents(InodeContents[Superblock, InodeFacts], frozen=True):
    """An image that was read. Offers what `fledge.formats.Contents` asks for."""

    def facts(self) -> Mapping[str, object]:
        """Every field of the superblock; the features by name."""
        superblock = self.image.superblock
        fields = superblock._asdict()
        for name in ("feature_compat", "feature_incompat", "feature_ro_compat", "checksum"):
            del fields[name]
        return {
            "features": superblock.features,
            **{f"superblock {name}": _readable(name, value) for name, value in fields.items()},
        }

    def node_facts(self, node: Node) -> Mapping[str, object]:
        """The fields of the node's inode that do not show in the tree."""
        inode = self.image.inodes[node]
        return {
            **super().node_facts(node),
            "blocks": inode.blocks,
            "flags": f"{inode.flags:#x}",
            "generation": inode.generation,
            "atime_ns": inode.atime_ns,
            "ctime_ns": inode.ctime_ns,
            "crtime_ns": inode.crtime_ns,
            "place of content": position(node.content) if isinstance(node, File) else None,
        }

    def describe(self) -> Mapping[str, Any]:
        """The superblock, as JSON has it."""
        superblock = self.image.superblock
        uuid = superblock.uuid.hex()
        return {
            "filesystem": {
                "uuid": "-".join((uuid[:8], uuid[8:12], uuid[12:16], uuid[16:20], uuid[20:])),
                "label": superblock.volume_name.rstrip(b"\0").decode(errors="replace"),
                "features": superblock.features,
                "block_size": superblock.block_size,
                "blocks": superblock.blocks_count,
                "free_blocks": superblock.free_blocks_count,
                "reserved_blocks": superblock.reserved_blocks_count,
                "inodes": superblock.inodes_count,
                "free_inodes": superblock.free_inodes_count,
                "inode_size": superblock.inode_size,
            }
        }

    def describe_node(self, node: Node) -> Mapping[str, Any]:
        """The fields of the node's inode, as JSON has them."""
        inode = self.image.inodes[node]
        return {
            "atime_ns": inode.atime_ns,
            "ctime_ns": inode.ctime_ns,
            "crtime_ns": inode.crtime_ns,
            "blocks": inode.blocks,
            "flags": inode.flags,
            "generation": inode.generation,
        }

    def summary(self) -> Sequence[tuple[str, str]]:
        """Free space, inodes and features."""
        superblock = self.image.superblock
        free = superblock.free_blocks_count * superblock.block_size
        size = superblock.blocks_count * superblock.block_size
        return [
            ("free", f"{human_size(free)} of {human_size(size)}"),
            ("inodes", f"{superblock.free_inodes_count} of {superblock.inodes_count} free"),
            ("features", " ".join(superblock.features)),
        ]


def _readable(name: str, value: object) -> object:
    """A field of the superblock as text, if it is bytes."""
    if not isinstance(value, bytes):
        return value
    return value.rstrip(b"\0") if name in _TEXT_FIELDS else value.hex()
