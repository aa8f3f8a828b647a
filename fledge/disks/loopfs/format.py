"""The xfs and btrfs formats: mkfs makes the image and the kernel fills it.

Writing needs root, for the loop mount. The bytes are not reproducible: mkfs writes a random UUID,
and the kernel writes the current time and generation numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NoReturn

import msgspec

from fledge.disks.loopfs import writer
from fledge.errors import FledgeError
from fledge.host.destination import Destination
from fledge.host.settings import Settings
from fledge.tree import Tree
from fledge.tree.features import Feature
from fledge.tree.kernel import DISK, Requirement, filesystem
from fledge.tree.limits import DISK_INIT_PATHS
from fledge.tree.media import MediaType
from fledge.tree.space import AlignSize, Preallocate, SizeBuffer, free_space


class _LoopFormat(msgspec.Struct, frozen=True, tag_field="type"):
    """The options and methods that xfs and btrfs share."""

    name: ClassVar[str]
    driver: ClassVar[str]
    """The option of the kernel's configuration that has the driver of the filesystem."""
    strategy: ClassVar[str] = "oci_rootfs"
    lacks: ClassVar[frozenset[Feature]] = frozenset()
    own_paths: ClassVar[frozenset[bytes]] = frozenset()
    reproducible: ClassVar[bool] = False
    init_paths: ClassVar[tuple[bytes, ...]] = DISK_INIT_PATHS
    needs_init: ClassVar[bool] = False
    manifest_key: ClassVar[str] = "rootfs"
    in_memory: ClassVar[bool] = False
    media_type: ClassVar[MediaType | None] = None
    read_only: ClassVar[bool] = False

    size_buffer_mb: SizeBuffer = 0
    preallocate: Preallocate = False
    align_mb: AlignSize = 0

    def default_output(self, image_name: str | None) -> str:
        """Return ``IMAGE.img``, or ``plugin.img`` if there is no image."""
        return f"{image_name or 'plugin'}.img"

    def check(self, settings: Settings) -> None:
        """Raise `HostError` if this machine or user cannot write the filesystem."""
        writer.check(self.name, settings)

    def free_space(self, content_size: int) -> int:
        """Return what ``size_buffer_mb`` asks for."""
        return free_space(self.size_buffer_mb, content_size)

    def write(self, tree: Tree, destination: Destination) -> None:
        """Write the image. Raises what `writer.write` raises."""
        writer.write(
            tree,
            destination.file,
            self.name,
            size_buffer_mb=self.size_buffer_mb,
            align_mb=self.align_mb,
            preallocate=self.preallocate,
            settings=destination.settings,
        )
        with destination.file.open() as file, destination.reporter.work("hashing") as progress:
            destination.hasher.update_file(file, progress)

    def host_programs(self) -> tuple[str, ...]:
        """Return the program that makes the filesystem."""
        return (f"mkfs.{self.name}",)

    def requirements(self) -> Sequence[Requirement]:
        """Return the driver of the filesystem, and what every disk needs."""
        return (filesystem(self.name, self.driver), *DISK)

    @classmethod
    def read_requirements(cls, path: Path, folder: Path) -> Sequence[Requirement]:
        """Return the same for an image; its features are not read."""
        return cls().requirements()

    @classmethod
    def read(cls, path: Path, folder: Path, only: bytes | None) -> NoReturn:
        """Raise `FledgeError`: fledge cannot read these filesystems."""
        raise FledgeError(
            f"{path} is an image of type {cls.name}, which fledge cannot read",
            "Mount it to look at its files.",
        )


class Xfs(_LoopFormat, frozen=True, tag="xfs"):
    """An xfs image. It needs root, and its bytes are not reproducible."""

    name: ClassVar[str] = "xfs"
    driver: ClassVar[str] = "XFS_FS"

    @staticmethod
    def recognize(start: bytes) -> int:
        """Look for the magic number of the superblock (xfs_format.h, XFS_SB_MAGIC)."""
        return 2 if start.startswith(b"XFSB") else 0


class Btrfs(_LoopFormat, frozen=True, tag="btrfs"):
    """A btrfs image. It needs root, and its bytes are not reproducible."""

    name: ClassVar[str] = "btrfs"
    driver: ClassVar[str] = "BTRFS_FS"

    @staticmethod
    def recognize(start: bytes) -> int:
        """Look for the magic number of the superblock (btrfs_tree.h, BTRFS_MAGIC)."""
        return 2 if start[0x10040:0x10048] == b"_BHRfS_M" else 0
