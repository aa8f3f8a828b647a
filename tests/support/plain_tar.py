"""A complete format that fledge does not have: a plain tar."""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from fledge.host.destination import Destination
from fledge.host.settings import Settings
from fledge.tree import (
    NANOSECONDS,
    CharDevice,
    Device,
    Directory,
    Fifo,
    File,
    Node,
    Symlink,
    Tree,
)
from fledge.tree.content import Span, content_size, read_content
from fledge.tree.digest import Digest
from fledge.tree.features import Feature
from fledge.tree.kernel import Requirement
from fledge.tree.media import MediaType

MARK = "fledge.tests.plain"
"""A record in the header of the root, by which the format is recognized."""


class TarStat(msgspec.Struct, frozen=True):
    inode: int | None
    links: int
    size: int


class TarContents(msgspec.Struct, frozen=True, dict=True):
    tree: Tree
    positions: dict[Node, int]
    sockets: tuple[bytes, ...] = ()

    @cached_property
    def _names(self) -> Counter[Node]:
        return Counter(node for _, node in self.tree.walk())

    def stat(self, node: Node) -> TarStat:
        size = content_size(node.content) if isinstance(node, File) else 0
        links = node.links if isinstance(node, Directory) else self._names[node]
        return TarStat(None, links, size)

    def facts(self) -> Mapping[str, object]:
        return {"entries": len(list(self.tree.walk()))}

    def node_facts(self, node: Node) -> Mapping[str, object]:
        return {"position": self.positions.get(node)}

    def order(self) -> Sequence[bytes]:
        return ()

    def uncompressed(self) -> Sequence[Digest]:
        return ()

    def describe(self) -> Mapping[str, Any]:
        return {"tar": self.facts()}

    def describe_node(self, node: Node) -> Mapping[str, Any]:
        return {"position": self.positions.get(node)}

    def summary(self) -> Sequence[tuple[str, str]]:
        return [("entries", str(self.facts()["entries"]))]


class PlainTar(msgspec.Struct, frozen=True, tag="tar", tag_field="type"):
    """Write a tar of the tree."""

    name: ClassVar[str] = "tar"
    strategy: ClassVar[str] = "oci_rootfs"
    lacks: ClassVar[frozenset[Feature]] = frozenset()
    own_paths: ClassVar[frozenset[bytes]] = frozenset()
    reproducible: ClassVar[bool] = True
    init_paths: ClassVar[tuple[bytes, ...]] = ()
    needs_init: ClassVar[bool] = False
    manifest_key: ClassVar[str] = "rootfs"
    in_memory: ClassVar[bool] = False
    media_type: ClassVar[MediaType | None] = None
    read_only: ClassVar[bool] = False

    comment: Annotated[str, Meta(description="written into the archive")] = "none"

    def default_output(self, image_name: str | None) -> str:
        return f"{image_name or 'plugin'}.tar"

    def check(self, settings: Settings) -> None:
        """Do nothing: every machine can write it."""

    def free_space(self, content_size: int) -> None:
        """A tar is not written to."""

    def write(self, tree: Tree, destination: Destination) -> None:
        first: dict[Node, bytes] = {}
        with (
            destination.file.open() as output,
            tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for path, node in tree.walk():
                info = _info(path, node)
                if not path:
                    info.pax_headers = {**info.pax_headers, MARK: "1", "comment": self.comment}
                if node in first:
                    info.type, info.linkname = tarfile.LNKTYPE, _text(first[node])
                    info.size = 0
                    tar.addfile(info)
                elif isinstance(node, File):
                    tar.addfile(info, io.BytesIO(b"".join(read_content(node.content))))
                else:
                    tar.addfile(info)
                if not isinstance(node, Directory):
                    first.setdefault(node, path)
        with destination.file.open() as output:
            destination.hasher.update_file(output)

    def host_programs(self) -> tuple[str, ...]:
        """Return no programs: the archive is written here."""
        return ()

    def requirements(self) -> Sequence[Requirement]:
        return (Requirement("tar filesystem", ("TAR_FS",)),)

    @staticmethod
    def recognize(start: bytes) -> int:
        return 2 if MARK.encode() in start[:2048] else 0

    @staticmethod
    def read_requirements(path: Path, folder: Path) -> Sequence[Requirement]:
        return PlainTar().requirements()

    @staticmethod
    def read(path: Path, folder: Path, only: bytes | None) -> TarContents:
        tree = Tree(mtime_ns=0)
        positions: dict[Node, int] = {}
        with tarfile.open(path) as tar:
            for info in tar:
                name = os.fsencode(info.name).removeprefix(b".")
                if info.islnk():
                    target = tree.get(os.fsencode(info.linkname))
                    assert target
                    tree.add(name, target)
                    continue
                node = _node(info, path)
                node.xattrs = {
                    os.fsencode(key.removeprefix("SCHILY.xattr.")): os.fsencode(value)
                    for key, value in info.pax_headers.items()
                    if key.startswith("SCHILY.xattr.")
                }
                node.mtime_ns = int(info.pax_headers["fledge.mtime_ns"])
                node.uid, node.gid = info.uid, info.gid
                tree.add(name, node)
                positions[node] = info.offset
        return TarContents(tree, positions)


def _text(path: bytes) -> str:
    return os.fsdecode(path)


def _info(path: bytes, node: Node) -> tarfile.TarInfo:
    info = tarfile.TarInfo(_text(path) or ".")
    info.mode, info.uid, info.gid = node.mode, node.uid, node.gid
    info.mtime = node.mtime_ns // NANOSECONDS
    info.pax_headers = {
        "fledge.mtime_ns": str(node.mtime_ns),
        **{f"SCHILY.xattr.{_text(key)}": _text(value) for key, value in node.xattrs.items()},
    }
    if isinstance(node, Directory):
        info.type = tarfile.DIRTYPE
    elif isinstance(node, Symlink):
        info.type, info.linkname = tarfile.SYMTYPE, _text(node.target)
    elif isinstance(node, Fifo):
        info.type = tarfile.FIFOTYPE
    elif isinstance(node, Device):
        info.type = tarfile.CHRTYPE if isinstance(node, CharDevice) else tarfile.BLKTYPE
        info.devmajor, info.devminor = node.major, node.minor
    elif isinstance(node, File):
        info.size = content_size(node.content)
    return info


def _node(info: tarfile.TarInfo, path: Path) -> Node:
    if info.isdir():
        return Directory(mode=info.mode)
    if info.issym():
        return Symlink(mode=info.mode, target=os.fsencode(info.linkname))
    if info.isfifo():
        return Fifo(mode=info.mode)
    if info.ischr():
        return CharDevice(mode=info.mode, major=info.devmajor, minor=info.devminor)
    assert info.isreg(), info
    return File(mode=info.mode, content=Span(path, info.offset_data, info.size))
