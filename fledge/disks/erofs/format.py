"""The erofs format: a read-only image written from a tree without privileges, and read back.

Every command loads this module, for the list of formats. So what takes long to load is imported
when an image is written or read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from fledge.disks.erofs.constants import MAGIC, SUPERBLOCK_OFFSET
from fledge.host.destination import Destination
from fledge.host.files import NewFile
from fledge.host.settings import Settings
from fledge.tree import NANOSECONDS, File, Tree
from fledge.tree.content import content_size
from fledge.tree.features import Feature
from fledge.tree.kernel import Requirement
from fledge.tree.limits import DISK_INIT_PATHS, check_fits
from fledge.tree.media import MediaType

if TYPE_CHECKING:
    from fledge.disks.erofs.compression import Codec, Compressed
    from fledge.disks.erofs.contents import ErofsContents

Compression = Literal["none", "lz4", "zstd"]
"""How the contents of files are compressed."""

MAX_LEVELS = {"lz4": 12, "zstd": 19}
"""The highest level of each compression."""


class Erofs(msgspec.Struct, frozen=True, tag="erofs", tag_field="type"):
    """A read-only erofs image, made without root and the same on every machine."""

    name: ClassVar[str] = "erofs"
    strategy: ClassVar[str] = "oci_rootfs"
    lacks: ClassVar[frozenset[Feature]] = frozenset()
    own_paths: ClassVar[frozenset[bytes]] = frozenset()
    reproducible: ClassVar[bool] = True
    init_paths: ClassVar[tuple[bytes, ...]] = DISK_INIT_PATHS
    needs_init: ClassVar[bool] = False
    manifest_key: ClassVar[str] = "rootfs"
    in_memory: ClassVar[bool] = False
    media_type: ClassVar[MediaType | None] = MediaType("application/vnd.erofs", ("erofs",))
    """As in the EROFS Image Layer Format Specification, sections 2.1 and 5.4."""
    read_only: ClassVar[bool] = True

    compression: Annotated[
        Compression,
        Meta(
            description="How files are compressed. lz4 needs Linux 5.13, zstd needs 6.10 and is"
            " smaller.",
            examples=["lz4"],
        ),
    ] = "none"
    compression_level: Annotated[
        int,
        Meta(
            ge=1,
            le=max(MAX_LEVELS.values()),
            description="How hard to compress, from 1 to 12 with lz4, to 19 with zstd. Higher"
            " levels give smaller images and take longer.",
            examples=[12],
        ),
    ] = 9

    def __post_init__(self) -> None:
        """Raise `ValueError` if the compression does not have the level."""
        level, most = self.compression_level, MAX_LEVELS.get(self.compression)
        if most and level > most:
            raise ValueError(
                f"compression_level = {level}: {self.compression} has the levels 1 to {most}"
            )

    @staticmethod
    def json_rules() -> Mapping[str, object]:
        """Return a JSON Schema of the same rules."""
        return {
            "if": {"properties": {"compression": {"const": "lz4"}}, "required": ["compression"]},
            "then": {"properties": {"compression_level": {"maximum": MAX_LEVELS["lz4"]}}},
        }

    def default_output(self, image_name: str | None) -> str:
        """Return ``IMAGE.erofs``, or ``plugin.erofs`` if there is no image."""
        return f"{image_name or 'plugin'}.erofs"

    def check(self, settings: Settings) -> None:
        """Do nothing: every machine and user can write an erofs image."""

    def free_space(self, content_size: int) -> None:
        """Return None: what a guest can write depends on the overlay."""

    def write(self, tree: Tree, destination: Destination) -> None:
        """Write the image. The tree's own time is when the filesystem says it was made.

        Raises `CorruptError`, with the path, for what erofs cannot store; `FledgeError` if a
        content cannot be read; `OSError` if the disk refuses.
        """
        from fledge.disks.erofs import plan, structures, writer  # noqa: PLC0415

        check_fits(tree)
        epoch = tree.mtime_ns // NANOSECONDS
        compressed = self._compress(tree, destination)
        level = 0 if self.compression == "none" else self.compression_level
        layout = plan.make_plan(tree, compressed, ("erofs", self.compression, level, epoch))
        with (
            destination.file.open() as file,
            destination.reporter.work("writing") as progress,
        ):
            progress.restart(0, layout.blocks * structures.BLOCK_SIZE)
            writer.write(layout, file, epoch, destination.hasher, progress)

    def _compress(self, tree: Tree, destination: Destination) -> dict[File, Compressed]:
        """Compress the files of the tree. Those that do not get smaller are left out."""
        codec = self._codec
        if codec is None:
            return {}
        from fledge.disks.erofs.compress import compress  # noqa: PLC0415

        files = list(dict.fromkeys(node for _, node in tree.walk() if isinstance(node, File)))
        temporary = NewFile(destination.file.folder, "compressed")
        with destination.reporter.work("compressing") as progress:
            progress.restart(0, sum(content_size(file.content) for file in files))
            return compress(files, codec, self.compression_level, temporary, progress)

    @property
    def _codec(self) -> Codec | None:
        from fledge.disks.erofs.compression import Codec  # noqa: PLC0415

        return None if self.compression == "none" else Codec[self.compression.upper()]

    def host_programs(self) -> tuple[str, ...]:
        """Return no programs: the image is written here."""
        return ()

    def requirements(self) -> Sequence[Requirement]:
        """Return the driver of erofs, the codec, and what every disk needs."""
        from fledge.disks.erofs import kernel  # noqa: PLC0415

        return kernel.written(self._codec)

    @staticmethod
    def recognize(start: bytes) -> int:
        """Look for the magic number of the superblock."""
        return 2 if start[SUPERBLOCK_OFFSET:][:4] == MAGIC.to_bytes(4, "little") else 0

    @staticmethod
    def read(path: Path, folder: Path, only: bytes | None) -> ErofsContents:
        """Read an image, whoever made it. Raises as `reader.read`."""
        from fledge.disks.erofs import contents, reader  # noqa: PLC0415

        return contents.ErofsContents(reader.read(path, only))

    @staticmethod
    def read_requirements(path: Path, folder: Path) -> Sequence[Requirement]:
        """Return the same for an image, by the features in its superblock."""
        from fledge.disks.erofs import kernel, volume  # noqa: PLC0415

        return kernel.read(volume.read_superblock(path))
