"""Tests of hashing with several processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fledge.host.hashing import hash_blocks
from fledge.tree.block_digests import BLOCK_SIZE, DIGEST_SIZE, write_digests

SALT = b"salt"


@pytest.fixture(autouse=True)
def three_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fledge.host.hashing.MIN_BLOCKS", 50)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(3))


def check(folder: Path, first: int, count: int) -> None:
    """Compare the digests with those that one process makes."""
    data = folder / "data"
    data.write_bytes(os.urandom(100 * BLOCK_SIZE) + bytes(150 * BLOCK_SIZE))
    with data.open("rb") as source, (folder / "target").open("w+b") as target:
        found = []
        for function in (write_digests, hash_blocks):
            target.truncate(0)
            function(source.fileno(), first, count, SALT, target.fileno(), 7)
            found.append((folder / "target").read_bytes())
    assert found[0] == found[1]
    assert len(found[0]) == 7 + count * DIGEST_SIZE


@pytest.mark.parametrize(("first", "count"), [(0, 250), (3, 151), (0, 49), (5, 1)])
def test_it_is_the_same_as_by_one_process(first: int, count: int, tmp_path: Path) -> None:
    check(tmp_path, first, count)


@pytest.mark.parametrize("program", ["/bin/false", "", None])
def test_without_another_process(
    program: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where Python is a part of another program."""
    monkeypatch.setattr("sys.executable", program)
    check(tmp_path, 0, 250)


def test_a_file_that_ends_too_early(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_bytes(bytes(100 * BLOCK_SIZE))
    with (
        data.open("rb") as source,
        (tmp_path / "target").open("w+b") as target,
        pytest.raises(OSError, match="has become shorter"),
    ):
        hash_blocks(source.fileno(), 0, 200, SALT, target.fileno(), 0)
