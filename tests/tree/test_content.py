"""Hashing of whole files."""

import os
from pathlib import Path
from threading import Event

import pytest

from fledge.tree.content import HASH_SIZE, Blob, hash_file
from fledge.tree.digest import Digest


@pytest.mark.parametrize("size", [0, 1, HASH_SIZE - 1, HASH_SIZE, HASH_SIZE + 1, 3 * HASH_SIZE])
def test_a_file_of_any_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(data := os.urandom(size))
    assert hash_file(path) == Blob(path, 0, size, Digest.of(data))


def test_a_stop_ends_the_reading(tmp_path: Path) -> None:
    stop = Event()
    stop.set()
    path = tmp_path / "file"
    path.write_bytes(b"data")
    assert hash_file(path, stop) == Blob(path, 0, 0, Digest.of(b""))
