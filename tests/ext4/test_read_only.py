"""Tests of ext4 images that no kernel writes to."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from fledge.ext4.format import Ext4
from fledge.ext4.structures import BLOCK_SIZE
from fledge.formats import artifact_requirements, open_artifact
from fledge.machine import kernels
from fledge.machine.check import check
from fledge.tree import Directory, File, Tree
from fledge.tree.content import Span
from tests.support import disks, golden, mounted
from tests.support.samples import sample

READ_ONLY = Ext4(read_only=True)


def test_golden(tmp_path: Path) -> None:
    image = tmp_path / "image"
    disks.write(sample(), image, READ_ONLY)
    assert hashlib.sha256(image.read_bytes()).hexdigest() == golden.EXT4_READ_ONLY


def test_it_has_neither_a_journal_nor_free_space(tmp_path: Path) -> None:
    image = tmp_path / "image"
    disks.write(sample(), image, READ_ONLY)
    with open_artifact(image) as opened:
        filesystem = opened.contents.describe()["filesystem"]
    assert filesystem["free_blocks"] == 0
    assert filesystem["blocks"] * BLOCK_SIZE == image.stat().st_size
    assert "read-only" in filesystem["features"]
    assert not {"has_journal", "resize_inode"} & set(filesystem["features"])


def test_the_options_have_a_say_in_its_uuid(tmp_path: Path) -> None:
    uuids = set()
    for number, options in enumerate((READ_ONLY, Ext4())):
        image = tmp_path / str(number)
        disks.write(Tree(mtime_ns=0), image, options)
        with open_artifact(image) as opened:
            uuids.add(opened.contents.describe()["filesystem"]["uuid"])
    assert len(uuids) == 2


def test_what_a_kernel_needs(tmp_path: Path) -> None:
    image = tmp_path / "image"
    disks.write(Tree(mtime_ns=0), image, READ_ONLY)
    assert list(artifact_requirements(image)) == list(READ_ONLY.requirements())
    by_purpose = {each.purpose: each for each in READ_ONLY.requirements()}
    assert by_purpose["ext4 read-only"].since == (4, 0)
    assert by_purpose["overlayfs"].essential
    assert check(READ_ONLY.requirements(), kernels.find("volant", tmp_path)).boots


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount an image")
def test_the_kernel_sees_the_tree_and_never_writes(tmp_path: Path) -> None:
    image = tmp_path / "image"
    disks.write_ext4(tree := sample(), image, READ_ONLY, 0)
    before = image.read_bytes()
    with mounted.mounted(image) as folder:
        assert mounted.list_folder(folder) == mounted.list_tree(tree)
        with pytest.raises(OSError, match="Read-only"):
            (folder / "new").touch()
    assert image.read_bytes() == before


@pytest.mark.real
@pytest.mark.parametrize("mebibytes", [127, 300])
def test_several_groups_are_dense(mebibytes: int, tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(mebibytes << 20)
    tree = Tree(mtime_ns=0)
    tree.add(b"large", File(mode=0o644, content=Span(source, 0, mebibytes << 20)))
    for number in range(500):
        tree.add(b"many/%d" % number, Directory(mode=0o755))
    image = tmp_path / "image"
    disks.write(tree, image, READ_ONLY)
    done = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    with open_artifact(image) as opened:
        filesystem = opened.contents.describe()["filesystem"]
    assert filesystem["free_blocks"] <= 1
    assert filesystem["free_inodes"] < 16 * (mebibytes // 128 + 2)


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"size_buffer_mb": 1}, "no free space"), ({"builder": "mkfs"}, "fledge itself")],
)
def test_options_that_do_not_fit(options: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Ext4(read_only=True, **options)  # type: ignore[arg-type]
