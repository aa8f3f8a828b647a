"""The initramfs as a format of artifacts."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from fledge.cpio.format import MAX_HOLES, GzipInitramfs
from fledge.errors import CorruptError
from fledge.host.destination import Destination
from fledge.host.files import replacing_together
from fledge.host.output import Hasher
from fledge.host.settings import Settings
from fledge.report import Reporter
from fledge.tree import File, Tree
from fledge.tree.content import DataExtent, Sparse


def write(tree: Tree, path: Path) -> None:
    with replacing_together(path) as [new], closing(Hasher()) as hasher:
        GzipInitramfs().write(tree, Destination(new, hasher, Reporter(), Settings()))


def test_holes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of 241 bytes can claim 4 GiB of zeros in each of its files."""
    data = tmp_path / "data"
    data.write_bytes(b"data")
    tree = Tree(mtime_ns=0)
    for name in (b"a", b"b"):
        extents = (DataExtent(0, 0, 4),)
        tree.add(name, File(mode=0o644, content=Sparse(MAX_HOLES // 2 + 5, data, extents)))
    with pytest.raises(CorruptError, match=r"^/b is sparse, .* at most 1\.0 GiB") as caught:
        write(tree, tmp_path / "x.cpio.gz")
    assert "oci_rootfs" in caught.value.hint
    assert not (tmp_path / "x.cpio.gz").exists()
    monkeypatch.setattr("fledge.cpio.format.MAX_HOLES", 2000)
    few = Tree(mtime_ns=0)
    node = File(mode=0o644, content=Sparse(1500, data, ()))
    for name in (b"a", b"b"):  # one file
        few.add(name, node)
    write(few, tmp_path / "x.cpio.gz")
