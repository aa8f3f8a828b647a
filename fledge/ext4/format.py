"""The ext4 format: an image written from a tree without privileges, and read back.

fledge writes it itself. With ``builder = "mkfs"`` e2fsprogs do: the same layout gives both
their size, their journal, their UUID and their count of inodes, so that one can check the other.

Every command loads this module, for the list of formats. So what takes long to load is imported
when an image is written or read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from fledge.ext4.constants import LOST_AND_FOUND_PATH, MAGIC, SUPERBLOCK_OFFSET
from fledge.host.destination import Destination
from fledge.host.settings import Settings
from fledge.tree import NANOSECONDS, Directory, Tree
from fledge.tree.features import Feature
from fledge.tree.kernel import Requirement
from fledge.tree.limits import DISK_INIT_PATHS, check_fits
from fledge.tree.media import MediaType
from fledge.tree.space import AlignSize, Preallocate, SizeBuffer, free_space

if TYPE_CHECKING:
    from fledge.ext4.contents import Ext4Contents

Builder = Literal["native", "mkfs"]
"""What writes the image: fledge, or e2fsprogs."""

_MAGIC_OFFSET = SUPERBLOCK_OFFSET + 0x38


class Ext4(msgspec.Struct, frozen=True, tag="ext4", tag_field="type"):
    """An ext4 image, made without root and the same on every machine."""

    name: ClassVar[str] = "ext4"
    strategy: ClassVar[str] = "oci_rootfs"
    lacks: ClassVar[frozenset[Feature]] = frozenset()
    own_paths: ClassVar[frozenset[bytes]] = frozenset({LOST_AND_FOUND_PATH})
    reproducible: ClassVar[bool] = True
    init_paths: ClassVar[tuple[bytes, ...]] = DISK_INIT_PATHS
    needs_init: ClassVar[bool] = False
    manifest_key: ClassVar[str] = "rootfs"
    in_memory: ClassVar[bool] = False
    media_type: ClassVar[MediaType | None] = None

    size_buffer_mb: SizeBuffer = 0
    builder: Annotated[
        Builder,
        Meta(description="fledge itself, or mkfs: mkfs.ext4 and debugfs"),
    ] = "native"
    preallocate: Preallocate = False
    align_mb: AlignSize = 0
    bytes_per_inode: Annotated[
        int | None,
        Meta(
            ge=4096,
            le=64 << 20,
            description="Bytes of the disk for each file that it can have. Without it, 16384, and"
            " 4096 of the first 512 MiB of free space.",
            examples=[8192],
        ),
    ] = None
    read_only: Annotated[
        bool,
        Meta(
            description="Make a disk that no kernel writes to: without a journal and without free"
            " space. A guest writes to an overlay in memory. Needed to seal it with [verity].",
            examples=[True],
            extra={"contradicts": ("size_buffer_mb", "bytes_per_inode", "preallocate", "builder")},
        ),
    ] = False

    def __post_init__(self) -> None:
        room = self.size_buffer_mb or self.bytes_per_inode or self.preallocate
        if self.read_only and (room or self.builder != "native"):
            raise ValueError(
                "read_only leaves no free space, and only fledge itself makes such a disk; remove"
                " size_buffer_mb, bytes_per_inode, preallocate and builder"
            )

    def default_output(self, image_name: str | None) -> str:
        """``IMAGE.img``."""
        return f"{image_name or 'plugin'}.img"

    def check(self, settings: Settings) -> None:
        """Raise `HostError` without e2fsprogs, if those are to build it."""
        if self.builder == "mkfs":
            from fledge.ext4 import mkfs  # noqa: PLC0415

            mkfs.check(settings)

    def free_space(self, content_size: int) -> int | None:
        """Return what ``size_buffer_mb`` asks for; None for one that is never written."""
        return None if self.read_only else free_space(self.size_buffer_mb, content_size)

    def write(self, tree: Tree, destination: Destination) -> None:
        """Write the image, which has a /lost+found; the tree need not.

        The tree's own time is when the filesystem says it was made. The same tree and options
        give the same bytes, with ``builder = "mkfs"`` if e2fsprogs are the same. Raises
        `CorruptError`, with the path, for what ext4 cannot hold; `FledgeError` if a content
        cannot be read or a tool fails; `HostError` without e2fsprogs; `OSError` if the disk
        refuses.
        """
        from fledge.ext4 import mkfs, plan, structures, writer  # noqa: PLC0415

        complete = _with_lost_and_found(tree)
        check_fits(complete)
        epoch = tree.mtime_ns // NANOSECONDS
        room = plan.Room(self.size_buffer_mb, self.align_mb, self.bytes_per_inode, self.read_only)
        layout = plan.make_plan(complete, room, epoch)
        hasher = destination.hasher
        size = layout.geometry.blocks * structures.BLOCK_SIZE
        with destination.file.open() as file:
            if self.builder == "mkfs":
                reporter = destination.reporter
                mkfs.write(
                    complete, layout, destination.file, epoch, destination.settings, reporter
                )
                with reporter.work("hashing") as progress:
                    hasher.update_file(file, progress)
            else:
                with destination.reporter.work("writing") as progress:
                    progress.restart(0, size)
                    writer.write(layout, file, epoch, hasher, progress)
            if self.preallocate:
                os.posix_fallocate(file.fileno(), 0, size)

    def host_programs(self) -> tuple[str, ...]:
        """Return mkfs.ext4, if that is to build it."""
        return ("mkfs.ext4",) if self.builder == "mkfs" else ()

    def requirements(self) -> Sequence[Requirement]:
        """Return the driver of ext4, its features, and what every disk needs."""
        from fledge.ext4 import kernel  # noqa: PLC0415

        return kernel.written(read_only=self.read_only)

    @staticmethod
    def recognize(start: bytes) -> int:
        """By the superblock's magic number; ext2 and ext3 have it too."""
        magic = start[_MAGIC_OFFSET : _MAGIC_OFFSET + 2]
        return 2 if magic == MAGIC.to_bytes(2, "little") else 0

    @staticmethod
    def read(path: Path, folder: Path, only: bytes | None) -> Ext4Contents:
        """Read an ext2, ext3 or ext4 image. Raises as `reader.read`."""
        from fledge.ext4 import contents, reader  # noqa: PLC0415

        return contents.Ext4Contents(reader.read(path, only))

    @staticmethod
    def read_requirements(path: Path, folder: Path) -> Sequence[Requirement]:
        """Return the same for an image, by the features in its superblock."""
        from fledge.ext4 import kernel  # noqa: PLC0415

        return kernel.read(path)


def _with_lost_and_found(tree: Tree) -> Tree:
    """The tree with a /lost+found; where it has none, its root is copied to put one there."""
    if LOST_AND_FOUND_PATH in tree.root.children:
        return tree
    complete = Tree(tree.mtime_ns)
    lost_and_found = Directory(mode=0o700, mtime_ns=tree.mtime_ns)
    children = {**tree.root.children, LOST_AND_FOUND_PATH: lost_and_found}
    complete.root = replace(tree.root, children=children)
    return complete
