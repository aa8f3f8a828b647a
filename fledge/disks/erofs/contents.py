"""The facts about an erofs image that are not in its tree: superblock and fields of inodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from fledge.disks.erofs.reader import InodeFacts
from fledge.disks.erofs.structures import DataLayout, Superblock
from fledge.tree import File, Node
from fledge.tree.inode_contents import InodeContents, position


class ErofsContents(InodeContents[Superblock, InodeFacts], frozen=True):
    """An image that was read. Implements `fledge.formats.Contents`."""

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
        inode = self.image.inodes[node]
        return {
            **super().node_facts(node),
            "number for 32 bits": inode.number32,
            "layout": _layout(inode),
            "extended": inode.is_extended,
            "place of content": position(node.content) if isinstance(node, File) else None,
        }

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
        return {"layout": _layout(self.image.inodes[node])}

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
