"""Defines the interface of an artifact format, and lists the formats.

A format knows the tree, but not fledge.toml, images or other formats. To add one, write a folder
with a class that implements `Format`, and put the class into `FORMATS`. The table of its strategy
and all operations then support it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import msgspec

from fledge.cpio.format import GzipInitramfs, Lz4Initramfs, PlainInitramfs, ZstdInitramfs
from fledge.disks.erofs.format import Erofs
from fledge.disks.loopfs.format import Btrfs, Xfs
from fledge.disks.squashfs.format import Squashfs
from fledge.errors import CorruptError, explained_memory, unreadable_argument
from fledge.ext4.format import Ext4
from fledge.host.destination import Destination
from fledge.host.files import PathLike
from fledge.host.settings import Settings
from fledge.host.work import temporary_folder
from fledge.tree import Node, Tree
from fledge.tree.digest import Digest
from fledge.tree.features import Feature
from fledge.tree.kernel import Requirement
from fledge.tree.media import MediaType
from fledge.tree.names import HASH_TREE_SUFFIX
from fledge.tree.regular import check_regular

START_SIZE = (1 << 16) + 4096
"""Bytes at the beginning of a file that `Format.recognize` gets. The magic number of btrfs is at
64 KiB."""


class Stat(Protocol):
    """The fields of stat(2) that are not part of a `Node`."""

    @property
    def inode(self) -> int | None:
        """The inode number. None for a directory that has no entry of its own in an archive."""

    @property
    def links(self) -> int:
        """The number of names that the node has."""

    @property
    def size(self) -> int:
        """Size in bytes; 0 for a directory whose size the format does not store."""


class Contents(Protocol):
    """An artifact that was read: its tree, and the facts about it that are not in the tree."""

    @property
    def tree(self) -> Tree:
        """The filesystem. The contents of its files stay in the artifact."""

    @property
    def sockets(self) -> Sequence[bytes]:
        """The paths of sockets, without a leading slash. A tree cannot contain sockets."""

    def stat(self, node: Node) -> Stat:
        """Return the inode number, number of links and size of a node."""

    def facts(self) -> Mapping[str, object]:
        """Return the facts about the container that `diff` compares, by their displayed names."""

    def node_facts(self, node: Node) -> Mapping[str, object]:
        """Return the facts about a node that `diff` compares, by their displayed names."""

    def order(self) -> Sequence[bytes]:
        """Return the paths in the order of the file. Empty if the format prescribes the order."""

    def uncompressed(self) -> Sequence[Digest]:
        """Return the digests of the uncompressed parts. Empty if nothing is compressed."""

    def describe(self) -> Mapping[str, Any]:
        """Return the facts about the container, for ``inspect --json``."""

    def describe_node(self, node: Node) -> Mapping[str, Any]:
        """Return the facts about a node, for ``inspect --json``."""

    def summary(self) -> Sequence[tuple[str, str]]:
        """Return the facts about the container as (title, text), for ``inspect``."""


class Format(Protocol):
    """A format of artifacts. An instance carries the options of one build.

    An implementation is a frozen `msgspec.Struct`. Its fields are the options: the annotations
    declare type, bounds, default and description, and the table of its strategy in fledge.toml,
    its reference and the JSON Schema are derived from them. Its tag is the value that chooses it
    there, its ``tag_field`` the key. All formats of a strategy have the same ``tag_field``.
    """

    name: ClassVar[str]
    """The ``kind`` that `inspect` shows."""
    strategy: ClassVar[str]
    """The ``strategy`` in fledge.toml that builds this format: one of `STRATEGIES`."""
    lacks: ClassVar[frozenset[Feature]]
    """The features of a tree that the format cannot store. A build reports their loss."""
    own_paths: ClassVar[frozenset[bytes]]
    """The paths of directories that the format adds if the tree lacks them."""
    reproducible: ClassVar[bool]
    """Whether the same tree and options give the same bytes on every machine."""
    init_paths: ClassVar[tuple[bytes, ...]]
    """The paths at which the kernel looks for its first program, in the kernel's order."""
    needs_init: ClassVar[bool]
    """Whether the artifact can boot only with an executable at one of ``init_paths``."""
    manifest_key: ClassVar[str]
    """The key of Volant's plugin manifest for the artifact: ``rootfs`` or ``initramfs``."""
    in_memory: ClassVar[bool]
    """Whether the kernel unpacks the whole artifact into memory."""
    media_type: ClassVar[MediaType | None]
    """The media type that others have given the format. None: there is none."""

    @property
    def read_only(self) -> bool:
        """Whether Linux can only read the filesystem: a guest that writes needs an overlay."""

    def default_output(self, image_name: str | None) -> str:
        """Return the default file name. ``image_name`` is the name of the image in the artifact;
        None if there is no image.
        """

    def check(self, settings: Settings) -> None:
        """Raise `HostError` if this machine or user cannot write the format."""

    def free_space(self, content_size: int) -> int | None:
        """Return the bytes that a guest can write to an artifact with so many bytes of content.

        None: it has no limit of its own.
        """

    def write(self, tree: Tree, destination: Destination) -> Digest | None:
        """Write the whole tree, without changing it.

        Everything that the format adds gets the time ``tree.mtime_ns``. Returns the digest of
        the uncompressed content, or None if the format does not compress. Raises `CorruptError`,
        with the path, if the format cannot store a node; `FledgeError` if a content cannot be
        read; `OSError` if the artifact cannot be written.
        """

    def host_programs(self) -> Sequence[str]:
        """Return the programs of this machine that write the artifact: their versions decide its
        bytes, too.
        """

    def requirements(self) -> Sequence[Requirement]:
        """Return what a kernel must be able to do to boot what `write` writes."""

    @staticmethod
    def recognize(start: bytes) -> int:
        """Rate the evidence that a file that begins with ``start`` has this format.

        0: it does not; 1: it may; 2: it has the magic number.
        """

    @staticmethod
    def read(path: Path, folder: Path, only: bytes | None) -> Contents:
        """Read the artifact at ``path``. Temporary files go into ``folder``.

        ``only`` limits what the caller needs to one path in the artifact: the nodes that lead
        there and, if it is a directory, its entries. None: the caller needs everything. Raises
        `CorruptError` if the artifact is damaged or hostile, `FledgeError` if it cannot be read.
        """

    @staticmethod
    def read_requirements(path: Path, folder: Path) -> Sequence[Requirement]:
        """Return what a kernel must be able to do to boot the artifact at ``path``.

        Reads no more of it than that needs. ``folder`` and errors are as in `read`.
        """


class Strategy(msgspec.Struct, frozen=True):
    """A value of ``strategy`` in fledge.toml: a choice of formats."""

    description: str
    """What it builds."""
    table: str
    """The table of fledge.toml that chooses one of its formats and sets the options."""
    table_description: str


STRATEGIES = {
    "initramfs": Strategy(
        "A cpio archive that the kernel unpacks into memory.",
        "archive",
        "How the archive is compressed.",
    ),
    "oci_rootfs": Strategy(
        "A disk image with the filesystem that is set in [filesystem].",
        "filesystem",
        "The filesystem of the image.",
    ),
}
"""All strategies, by name."""

FORMATS: list[type[Format]] = [
    *(GzipInitramfs, ZstdInitramfs, Lz4Initramfs, PlainInitramfs),
    *(Ext4, Xfs, Btrfs, Erofs, Squashfs),
]
"""All formats. If several rate a file equally, the first one reads it."""


class Opened(msgspec.Struct, frozen=True):
    """An open artifact. Its contents can be read only while it is open."""

    path: Path
    size: int
    """Size of the file in bytes."""
    format: type[Format]
    contents: Contents

    @property
    def tree(self) -> Tree:
        """The filesystem in the artifact."""
        return self.contents.tree


@contextmanager
def open_artifact(path: PathLike, only: bytes | None = None) -> Iterator[Opened]:
    """Open the artifact at ``path``. The first bytes of the file decide its format, not its name.

    ``only`` is as in `Format.read`. Temporary files go into a private folder, which is removed
    at the end of the context. Raises `CorruptError` if the artifact is damaged, hostile or of an
    unknown format; `FledgeError` if it cannot be read.
    """
    path = Path(path)
    format_, size = find_format(path)
    with explained_memory(str(path)), temporary_folder() as (folder, _):
        yield Opened(path, size, format_, format_.read(path, folder, only))


def artifact_requirements(path: PathLike) -> Sequence[Requirement]:
    """Return what a kernel must be able to do to boot the artifact at ``path``.

    Raises what `open_artifact` raises.
    """
    path = Path(path)
    format_, _ = find_format(path)
    with explained_memory(str(path)), temporary_folder() as (folder, _):
        return format_.read_requirements(path, folder)


def find_format(path: Path) -> tuple[type[Format], int]:
    """Return the format of the artifact at ``path``, and its size in bytes.

    Raises `ConfigError` if there is no such file, `CorruptError` if its format is unknown,
    `FledgeError` if it cannot be read.
    """
    try:
        if not path.is_block_device():
            check_regular(path)
        with path.open("rb") as file:
            start = file.read(START_SIZE)
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise unreadable_argument(path, error) from error
    best = max(FORMATS, key=lambda each: each.recognize(start))
    if not best.recognize(start):
        raise _unknown(path, start)
    return best, size


def _unknown(path: Path, start: bytes) -> CorruptError:
    """Return the error for a file in no known format that begins with ``start``."""
    # Imported late, because every command loads this module.
    from fledge.tree import verity  # noqa: PLC0415

    if start.startswith(verity.SIGNATURE):
        disk = path.with_suffix("") if path.suffix == HASH_TREE_SUFFIX else "a disk"
        return CorruptError(
            f"{path} is the hash tree by which dm-verity seals {disk}, and has no files",
            "Name the disk, which has them.",
        )
    names = ", ".join(dict.fromkeys(each.name for each in FORMATS))
    return CorruptError(
        f"{path} is not in a known format ({names})",
        "Mount an image of another format to read it; of a whole disk, name one partition.",
    )
