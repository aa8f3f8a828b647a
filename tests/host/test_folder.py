"""Trees that are written to a folder of the host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fledge.host import folder
from fledge.tree import File, Symlink, Tree
from fledge.tree.content import READ_SIZE, Content, DataExtent, Span, Sparse


def populated(path: Path, content: Content) -> tuple[bytes, int]:
    tree = Tree(mtime_ns=0)
    file = File(mode=0, content=content)
    tree.add(b"f", file)
    path.mkdir()
    root = os.open(path, os.O_RDONLY)
    try:
        folder.populate(tree, root)
        data = (path / "f").read_bytes()
        blocks = (path / "f").stat().st_blocks // 8
    finally:
        os.close(root)
    return data, blocks


@pytest.mark.parametrize(
    ("size", "extents", "blocks"),
    [
        (0, (), 0),
        (9000, (), 0),
        (1, ((0, 1),), 1),
        (9000, ((0, 9000),), 3),
        (20_000, ((5, 4000), (4100, 10), (16_384, 3616)), 3),
        (8192, ((4000, 10), (4095, 2), (8192, 0)), 2),
        (3 * READ_SIZE, ((1, READ_SIZE), (2 * READ_SIZE - 1, 2)), 257 + 2),
    ],
)
def test_a_content_is_the_same_however_it_is_kept(
    tmp_path: Path, size: int, extents: tuple[tuple[int, int], ...], blocks: int
) -> None:
    total = sum(length for _, length in extents)
    data = bytes(1 + number % 255 for number in range(total))
    (tmp_path / "data").write_bytes(b"before" + data)
    dense = bytearray(size)
    placed = tuple(
        DataExtent(offset, 6 + sum(length for _, length in extents[:number]), length)
        for number, (offset, length) in enumerate(extents)
    )
    for offset, start, length in placed:
        dense[offset : offset + length] = data[start - 6 : start - 6 + length]
    (tmp_path / "dense").write_bytes(dense)
    results = [
        populated(tmp_path / name, content)
        for name, content in (
            ("a", Sparse(size, tmp_path / "data", placed)),
            ("b", bytes(dense)),
            ("c", Span(tmp_path / "dense", 0, size)),
        )
    ]
    assert results[0] == results[1] == results[2]
    assert results[0][0] == dense
    assert results[0][1] == blocks


def test_no_symlink_is_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    tree = Tree(mtime_ns=0)
    tree.add(b"a", Symlink(target=os.fsencode(outside)))
    link = tree.root.children[b"a"]
    tree.root.children[b"b"] = link
    (tmp_path / "folder").mkdir()
    root = os.open(tmp_path / "folder", os.O_RDONLY)
    try:
        folder.populate(tree, root)
        assert (tmp_path / "folder" / "b").lstat().st_nlink == 2
    finally:
        os.close(root)
    assert os.listdir(outside) == []
