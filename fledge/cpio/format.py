"""The initramfs formats: a newc archive, compressed with gzip, zstd or LZ4 or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from fledge.cpio import gzip, lz4, newc, reader, zstd
from fledge.cpio.contents import InitramfsContents
from fledge.errors import CorruptError
from fledge.host.destination import Destination
from fledge.host.output import Output
from fledge.host.settings import Settings
from fledge.report import Transfer, human_size
from fledge.tree import File, Tree
from fledge.tree.content import Sparse, content_size
from fledge.tree.digest import Digest
from fledge.tree.features import Feature
from fledge.tree.kernel import GUEST, Requirement
from fledge.tree.media import MediaType
from fledge.tree.names import printable

MAX_HOLES = 1 << 30
"""Maximum bytes of holes in all files of an initramfs, which are written as zeros. A few hundred
bytes of an image can claim terabytes of them."""


def _level(maximum: int) -> Meta:
    """Declare the key ``level``."""
    return Meta(
        ge=1,
        le=maximum,
        description="How hard to compress, from 1 to 12 with gzip and lz4, to 19 with zstd. Higher"
        " levels give smaller artifacts and take longer.",
        examples=[maximum],
    )


class _Initramfs(msgspec.Struct, frozen=True, tag_field="compression"):
    """A cpio archive that the kernel unpacks into memory: what all compressions share."""

    name: ClassVar[str] = "initramfs"
    strategy: ClassVar[str] = "initramfs"
    lacks: ClassVar[frozenset[Feature]] = frozenset({Feature.XATTRS, Feature.SUBSECONDS})
    own_paths: ClassVar[frozenset[bytes]] = frozenset()
    reproducible: ClassVar[bool] = True
    init_paths: ClassVar[tuple[bytes, ...]] = (b"/init",)
    needs_init: ClassVar[bool] = True
    manifest_key: ClassVar[str] = "initramfs"
    in_memory: ClassVar[bool] = True
    media_type: ClassVar[MediaType | None] = None
    read_only: ClassVar[bool] = False

    codec: ClassVar[str | None]
    """The compression, in the kernel's words; None if the archive is not compressed."""
    suffix: ClassVar[str]
    """The end of the default file name."""

    def default_output(self, image_name: str | None) -> str:
        """Return ``plugin.cpio`` and the suffix of the compression, with or without an image."""
        return f"plugin.cpio{self.suffix}"

    def check(self, settings: Settings) -> None:
        """Do nothing: every machine and user can write an initramfs."""

    def free_space(self, content_size: int) -> None:
        """Return None: the guest unpacks the archive into its memory."""

    def compress(self, pieces: Iterable[bytes]) -> Iterable[bytes]:
        """Compress an archive."""
        raise NotImplementedError

    def write(self, tree: Tree, destination: Destination) -> Digest | None:
        """Write the archive and return its uncompressed digest; None if it is not compressed.

        Raises `CorruptError` if files have more than `MAX_HOLES`, and what `newc.write` raises.
        """
        _check_holes(tree)
        nodes = {node for _, node in tree.walk()}
        lost = sum(bool(node.xattrs) for node in nodes)
        if lost:
            files = "1 file loses" if lost == 1 else f"{lost} files lose"
            destination.reporter.note(
                f"{files} extended attributes, which an initramfs cannot hold"
            )
        total = sum(content_size(node.content) for node in nodes if isinstance(node, File))
        archive = hashlib.sha256()
        position = 0
        with (
            destination.file.open() as file,
            closing(Output(file.fileno(), destination.hasher)) as output,
            destination.reporter.work("writing") as transfer,
        ):
            transfer.restart(0, total)
            for block in self.compress(_observed(newc.write(tree), transfer, archive)):
                output.write(block, position)
                position += len(block)
            output.finish(position)
        return Digest(archive.hexdigest()) if self.codec else None

    def host_programs(self) -> tuple[str, ...]:
        """Return no programs: the archive is written here."""
        return ()

    def requirements(self) -> Sequence[Requirement]:
        """Return what unpacking the archive needs, and what every guest needs."""
        return _requirements([self.codec])

    @staticmethod
    def recognize(start: bytes) -> int:
        """Look for the magic number of an archive or a compression, possibly after zeros."""
        if reader.has_magic_number(start):
            return 2
        return 1 if reader.has_magic_number(start.lstrip(b"\0")) else 0

    @staticmethod
    def read(path: Path, folder: Path, only: bytes | None) -> InitramfsContents:
        """Read the whole file: an archive has no index. Raises what `reader.read` raises."""
        return InitramfsContents(path, reader.read(path, folder))

    @staticmethod
    def read_requirements(path: Path, folder: Path) -> Sequence[Requirement]:
        """Return the same for an initramfs, by the compression of each of its archives."""
        archives = reader.read(path, folder).archives
        return _requirements(archive.compression for archive in archives)


class GzipInitramfs(_Initramfs, frozen=True, tag="gzip"):
    """The archive is compressed with gzip, which every kernel can unpack."""

    codec: ClassVar[str | None] = "gzip"
    suffix: ClassVar[str] = ".gz"

    level: Annotated[int, _level(12)] = gzip.LEVEL

    def compress(self, pieces: Iterable[bytes]) -> Iterable[bytes]:
        """Compress an archive to one gzip member."""
        return gzip.compress(pieces, self.level)


class ZstdInitramfs(_Initramfs, frozen=True, tag="zstd"):
    """The archive is compressed with zstd: the smallest, and quick to unpack."""

    codec: ClassVar[str | None] = "zstd"
    suffix: ClassVar[str] = ".zst"

    level: Annotated[int, _level(19)] = zstd.LEVEL

    def compress(self, pieces: Iterable[bytes]) -> Iterable[bytes]:
        """Compress an archive to one zstd frame."""
        return zstd.compress(pieces, self.level)


class Lz4Initramfs(_Initramfs, frozen=True, tag="lz4"):
    """The archive is compressed with LZ4: the quickest to unpack. No other archive can follow."""

    codec: ClassVar[str | None] = "lz4"
    suffix: ClassVar[str] = ".lz4"

    level: Annotated[int, _level(12)] = lz4.LEVEL

    def compress(self, pieces: Iterable[bytes]) -> Iterable[bytes]:
        """Compress an archive to one legacy LZ4 frame."""
        return lz4.compress(pieces, self.level)


class PlainInitramfs(_Initramfs, frozen=True, tag="none"):
    """The archive is not compressed."""

    codec: ClassVar[str | None] = None
    suffix: ClassVar[str] = ""

    def compress(self, pieces: Iterable[bytes]) -> Iterable[bytes]:
        """Return the archive as it is."""
        return pieces


def _requirements(compressions: Iterable[str | None]) -> Sequence[Requirement]:
    names = dict.fromkeys(name for name in compressions if name)
    return (
        Requirement(
            "initramfs", ("BLK_DEV_INITRD",), instead='build a disk: strategy = "oci_rootfs"'
        ),
        *(
            Requirement(
                f"{name} initramfs",
                (f"RD_{name.upper()}",),
                instead="choose another compression in [archive]",
            )
            for name in names
        ),
        *GUEST,
    )


def _check_holes(tree: Tree) -> None:
    """Raise `CorruptError`, with the path, at the file with which holes exceed `MAX_HOLES`."""
    sparse: set[File] = set()
    holes = 0
    for path, node in tree.walk():
        if not isinstance(node, File) or not isinstance(content := node.content, Sparse):
            continue
        if node in sparse:
            continue
        sparse.add(node)
        holes += content.size - sum(extent.length for extent in content.extents)
        if holes > MAX_HOLES:
            raise CorruptError(
                f"/{printable(path)} is sparse, and an initramfs stores holes as zeros: up to here"
                f" files have {human_size(holes)} of them, and fledge writes at most"
                f" {human_size(MAX_HOLES)}",
                'Leave the file out, or build a disk image with strategy = "oci_rootfs".',
            )


def _observed(
    pieces: Iterable[bytes], transfer: Transfer, digest: hashlib._Hash
) -> Iterator[bytes]:
    """Pass pieces on; update the digest and report their progress."""
    for piece in pieces:
        digest.update(piece)
        yield piece
        transfer.advance(len(piece))
