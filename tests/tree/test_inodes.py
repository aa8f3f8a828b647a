"""The walk over inodes, in images of all formats that have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fledge.disks.erofs.format import Erofs
from fledge.disks.squashfs.format import Squashfs
from fledge.errors import CorruptError
from fledge.ext4.format import Ext4
from fledge.formats import open_artifact
from fledge.tree import File, Tree, inodes
from fledge.tree.limits import MAX_PATH
from tests.support.disks import write

FORMATS = pytest.mark.parametrize(
    "format_", [Ext4(), Erofs(), Squashfs()], ids=lambda each: each.name
)


@FORMATS
def test_the_longest_path(
    format_: Ext4 | Erofs | Squashfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = b"/".join([b"a" * 127] * (MAX_PATH // 128))
    assert len(longest) == MAX_PATH - 1
    tree = Tree(mtime_ns=0)
    tree.add(longest, File(mode=0o644, content=b"content"))
    write(tree, tmp_path / "image", format_)
    with open_artifact(tmp_path / "image") as opened:
        assert opened.tree.get(longest)
    monkeypatch.setattr(inodes, "MAX_PATH", MAX_PATH - 1)
    with (
        pytest.raises(CorruptError, match=f"aaa: its path has more than {MAX_PATH - 2} bytes"),
        open_artifact(tmp_path / "image"),
    ):
        pass


@FORMATS
def test_only_one_path_is_read(format_: Ext4 | Erofs | Squashfs, tmp_path: Path) -> None:
    tree = Tree(mtime_ns=0)
    for path in (b"a/b/c", b"a/b/d/e", b"a/f", b"g/h"):
        tree.add(path, File(mode=0o644, content=path))
    write(tree, tmp_path / "image", format_)
    with open_artifact(tmp_path / "image", b"a/b") as opened:
        assert [path for path, _ in opened.tree.walk()] == [b"", b"a", b"a/b", b"a/b/c", b"a/b/d"]
