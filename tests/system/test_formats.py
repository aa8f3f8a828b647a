"""What is true of every format in the list."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from fledge.cpio.format import GzipInitramfs, Lz4Initramfs, PlainInitramfs, ZstdInitramfs
from fledge.disks.erofs.format import Erofs
from fledge.disks.squashfs.format import Squashfs
from fledge.ext4.format import Ext4
from fledge.formats import FORMATS, STRATEGIES, Format, open_artifact
from fledge.host.settings import Settings
from fledge.operations.diff import compare
from fledge.tree import TYPE_NAMES, File, Node, Tree
from fledge.tree.names import printable
from tests.support import disks
from tests.support.samples import sample

ARCHIVES = [
    pytest.param(GzipInitramfs(), id="gzip"),
    pytest.param(ZstdInitramfs(), id="zstd"),
    pytest.param(Lz4Initramfs(), id="lz4"),
    pytest.param(PlainInitramfs(), id="none"),
]
NATIVE = pytest.param(Ext4(size_buffer_mb=1), id="ext4")
EROFS = [
    pytest.param(Erofs(), id="erofs"),
    pytest.param(Erofs("lz4"), id="erofs-lz4"),
    pytest.param(Erofs("zstd"), id="erofs-zstd"),
]
SQUASHFS = pytest.param(Squashfs(), id="squashfs")
MKFS = pytest.param(Ext4(size_buffer_mb=1, builder="mkfs"), id="mkfs", marks=pytest.mark.real)


def state(tree: Tree) -> list[tuple[bytes, Node, object]]:
    """Every node with everything that could be changed about it."""
    return [
        (path, node, (node.mode, node.uid, node.gid, node.mtime_ns, dict(node.xattrs)))
        for path, node in tree.walk()
    ]


@pytest.mark.parametrize("options", [*ARCHIVES, NATIVE, *EROFS, SQUASHFS, MKFS])
def test_writing_leaves_the_tree_as_it_was(options: Format, tmp_path: Path) -> None:
    tree = sample()
    before = state(tree)
    disks.write(tree, tmp_path / "artifact", options)
    assert state(tree) == before


@pytest.mark.parametrize("options", [NATIVE, *EROFS, MKFS])
def test_what_is_written_is_read_back(options: Format, tmp_path: Path) -> None:
    tree = sample()
    disks.write(tree, tmp_path / "artifact", options)
    with open_artifact(tmp_path / "artifact") as opened:
        assert opened.format is type(options)
        changes = list(
            compare(tree, opened.tree, without=options.lacks, own_paths=options.own_paths)
        )
        assert changes == []
        for path, node in opened.tree.walk():
            stat = opened.contents.stat(node)
            assert stat.links >= 1, printable(path)
            assert node.file_type in TYPE_NAMES


@pytest.mark.parametrize("options", [*ARCHIVES, NATIVE, *EROFS, SQUASHFS])
def test_what_is_hashed_is_what_is_written(options: Format, tmp_path: Path) -> None:
    digest = disks.write(sample(), tmp_path / "artifact", options)
    with open_artifact(tmp_path / "artifact") as opened:
        assert opened.size == (tmp_path / "artifact").stat().st_size
    assert digest == type(digest).of((tmp_path / "artifact").read_bytes())


@pytest.mark.parametrize("options", [*ARCHIVES, NATIVE, SQUASHFS])
def test_what_is_read_can_be_written_in_another_format(options: Format, tmp_path: Path) -> None:
    """Contents that are unpacked when they are read, too."""
    tree = sample()
    tree.add(b"large", File(mode=0o644, content=b"some text\n" * 50_000 + bytes(1 << 20) + b"x"))
    disks.write(tree, tmp_path / "squashfs", Squashfs())
    with open_artifact(tmp_path / "squashfs") as first:
        disks.write(first.tree, tmp_path / "artifact", options)
        with open_artifact(tmp_path / "artifact") as second:
            lacks = Squashfs.lacks | options.lacks
            own_paths = options.own_paths
            assert list(compare(first.tree, second.tree, without=lacks, own_paths=own_paths)) == []


@pytest.mark.parametrize("kind", FORMATS, ids=[kind.__name__ for kind in FORMATS])
def test_a_format_offers_what_the_type_asks_for(kind: type[Format]) -> None:
    asked = {name for name in vars(Format) if not name.startswith("_")} | set(
        Format.__annotations__
    )
    assert asked <= set(dir(kind))
    assert inspect.getdoc(kind)
    assert kind.strategy in STRATEGIES
    settings = getattr(kind, "__struct_config__")  # noqa: B009
    same = [each for each in FORMATS if each.strategy == kind.strategy]
    assert {getattr(each, "__struct_config__").tag_field for each in same} == {settings.tag_field}  # noqa: B009


def test_no_format_takes_an_unknown_file_for_its_own() -> None:
    for start in (b"", bytes(1 << 17), b"#!/bin/sh\n", b"\x7fELF" + bytes(5000)):
        assert [kind.name for kind in FORMATS if kind.recognize(start)] == []


def test_what_a_format_needs_of_the_machine() -> None:
    nothing = Settings({"PATH": "/nowhere"})
    GzipInitramfs().check(nothing)
    Ext4().check(nothing)
    Erofs().check(nothing)
