"""The squashfs format: a compressed image that Linux can only read.

Every command loads this module, for the list of formats. So what takes long to load is imported
when an image is written or read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from fledge.disks.squashfs.constants import MAGIC
from fledge.host.destination import Destination
from fledge.host.settings import Settings
from fledge.tree import File, Tree
from fledge.tree.content import content_size
from fledge.tree.features import Feature
from fledge.tree.kernel import Requirement
from fledge.tree.limits import DISK_INIT_PATHS
from fledge.tree.media import MediaType

if TYPE_CHECKING:
    from fledge.disks.squashfs.contents import SquashfsContents

MAX_LEVELS = {"gzip": 12, "zstd": 22}
"""The highest level of each compression."""


class Squashfs(msgspec.Struct, frozen=True, tag="squashfs", tag_field="type"):
    """A squashfs image: compressed and read-only. It needs no root and is the same everywhere."""

    name: ClassVar[str] = "squashfs"
    strategy: ClassVar[str] = "oci_rootfs"
    lacks: ClassVar[frozenset[Feature]] = frozenset({Feature.SUBSECONDS})
    own_paths: ClassVar[frozenset[bytes]] = frozenset()
    reproducible: ClassVar[bool] = True
    init_paths: ClassVar[tuple[bytes, ...]] = DISK_INIT_PATHS
    needs_init: ClassVar[bool] = False
    manifest_key: ClassVar[str] = "rootfs"
    in_memory: ClassVar[bool] = False
    media_type: ClassVar[MediaType | None] = None
    read_only: ClassVar[bool] = True

    compression: Annotated[
        Literal["zstd", "gzip"],
        Meta(
            description="zstd is smaller and quicker to read. More kernels have gzip.",
            examples=["gzip"],
        ),
    ] = "zstd"
    compression_level: Annotated[
        int,
        Meta(
            ge=1,
            le=max(MAX_LEVELS.values()),
            description="How hard to compress, from 1 to 22 with zstd, to 12 with gzip. Higher"
            " levels give smaller images and take longer.",
            examples=[15],
        ),
    ] = 9
    block_size: Annotated[
        int,
        Meta(
            ge=4,
            le=1024,
            description="The size of the blocks that are compressed, in KiB: a power of 2."
            " Larger blocks give smaller images that are slower to read.",
            examples=[256],
        ),
    ] = 128
    overlay_size: Annotated[
        str | None,
        Meta(
            pattern="^[1-9][0-9]{0,8}[KMG]$",
            description="The memory for what a guest writes. It changes no byte: a build says what"
            " to put on the kernel's command line.",
            examples=["1G", "512M"],
        ),
    ] = None

    def __post_init__(self) -> None:
        """Raise `ValueError` if two options do not go together, or none can be like that."""
        most = MAX_LEVELS.get(self.compression, 0)
        if self.compression_level > most:
            raise ValueError(
                f"compression_level = {self.compression_level}: {self.compression} has the levels"
                f" 1 to {most}"
            )
        if self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size = {self.block_size}: must be a power of 2, such as 128")

    @staticmethod
    def json_rules() -> Mapping[str, object]:
        """Return a JSON Schema of the same rules."""
        blocks = [1 << log for log in range(2, 11)]
        return {
            "properties": {"block_size": {"enum": blocks}},
            "if": {"properties": {"compression": {"const": "gzip"}}, "required": ["compression"]},
            "then": {"properties": {"compression_level": {"maximum": MAX_LEVELS["gzip"]}}},
        }

    def default_output(self, image_name: str | None) -> str:
        """Return ``IMAGE.squashfs``, or ``plugin.squashfs`` if there is no image."""
        return f"{image_name or 'plugin'}.squashfs"

    def check(self, settings: Settings) -> None:
        """Do nothing: every machine and user can write a squashfs."""

    def free_space(self, content_size: int) -> None:
        """Return None: what a guest writes goes into an overlay in its memory."""

    def write(self, tree: Tree, destination: Destination) -> None:
        """Write the image. Notes what of the tree it cannot hold.

        Raises `CorruptError`, with the path, for what squashfs cannot hold at all; `FledgeError`
        if a content cannot be read; `OSError` if the image cannot be written.
        """
        from fledge.disks.squashfs import fits, structures, writer  # noqa: PLC0415

        geometry = writer.Geometry(
            block_size=self.block_size << 10,
            codec=structures.Codec[self.compression.upper()],
            level=self.compression_level,
        )
        reporter = destination.reporter
        for note in fits.losses(tree):
            reporter.note(note)
        if self.overlay_size:
            reporter.note(
                "squashfs is read-only: for what a guest writes, put overlay_size="
                f"{self.overlay_size} on the kernel's command line; the plugin manifest has no key"
                " for it"
            )
        with destination.file.open() as file:
            with reporter.work("writing") as progress:
                progress.restart(0, _content_size(tree))
                writer.write(tree, file, geometry, progress)
            # The superblock comes last, and is the first to be hashed.
            with reporter.work("hashing") as progress:
                destination.hasher.update_file(file, progress)

    def host_programs(self) -> tuple[str, ...]:
        """Return no programs: the image is written here."""
        return ()

    def requirements(self) -> Sequence[Requirement]:
        """Return the driver of squashfs, its decompressor, and what every disk needs."""
        from fledge.disks.squashfs import kernel, structures  # noqa: PLC0415

        return kernel.requirements(structures.Codec[self.compression.upper()])

    @staticmethod
    def recognize(start: bytes) -> int:
        """Look for the magic number of the superblock."""
        return 2 if start.startswith(MAGIC.to_bytes(4, "little")) else 0

    @staticmethod
    def read(path: Path, folder: Path, only: bytes | None) -> SquashfsContents:
        """Read an image, whoever made it. Raises what `reader.read` raises."""
        from fledge.disks.squashfs import contents, reader  # noqa: PLC0415

        return contents.SquashfsContents(reader.read(path, only))

    @staticmethod
    def read_requirements(path: Path, folder: Path) -> Sequence[Requirement]:
        """Return the same for an image, by its superblock."""
        from fledge.disks.squashfs import kernel, structures, volume  # noqa: PLC0415

        superblock = volume.read_superblock(path)
        return kernel.requirements(structures.Codec(superblock.compression))


def _content_size(tree: Tree) -> int:
    files = {node for _, node in tree.walk() if isinstance(node, File)}
    return sum(content_size(file.content) for file in files)
