"""The initramfs format: a newc archive compressed with gzip."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import msgspec

from fledge.cpio import gzip, newc, reader
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
from fledge.tree.names import printable

MAX_HOLES = 1 << 30
"""Maximum bytes of holes in all files of an initramfs, which are written as zeros. A few hundred
bytes of an image can claim terabytes of them."""


class Initramfs(msgspec.Struct, frozen=True, tag="initramfs", tag_field="type"):
    """A cpio archive, compressed with gzip, that the kernel unpacks into memory."""

    name: ClassVar[str] = "initramfs"
    strategy: ClassVar[str] = "initramfs"
    lacks: ClassVar[frozenset[Feature]] = frozenset({Feature.XATTRS, Feature.SUBSECONDS})
    own_paths: ClassVar[frozenset[bytes]] = frozenset()
    reproducible: ClassVar[bool] = True
    init_paths: ClassVar[tuple[bytes, ...]] = (b"/init",)
    needs_init: ClassVar[bool] = True
    manifest_key: ClassVar[str] = "initramfs"

    def default_output(self, image_name: str | None) -> str:
        """Return ``plugin.cpio.gz``, with or without an image."""
        return "plugin.cpio.gz"

    def check(self, settings: Settings) -> None:
        """Do nothing: every machine and user can write an initramfs."""

    def free_space(self, content_size: int) -> None:
        """Return None: the guest unpacks the archive into its memory."""

    def write(self, tree: Tree, destination: Destination) -> Digest:
        """Write the archive and return its uncompressed digest.

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
            for block in gzip.compress(_observed(newc.write(tree), transfer, archive)):
                output.write(block, position)
                position += len(block)
            output.finish(position)
        return Digest(archive.hexdigest())

    def requirements(self) -> Sequence[Requirement]:
        """Return what unpacking the archive needs, and what every guest needs."""
        return _requirements(["gzip"])

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


def _requirements(compressions: Iterable[str | None]) -> Sequence[Requirement]:
    names = dict.fromkeys(name for name in compressions if name)
    return (
        Requirement(
            "initramfs", ("BLK_DEV_INITRD",), instead='build a disk: strategy = "oci_rootfs"'
        ),
        *(Requirement(f"{name} initramfs", (f"RD_{name.upper()}",)) for name in names),
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
