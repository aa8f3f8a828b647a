"""Hashing of whole files."""

import hashlib
import os
from pathlib import Path
from threading import Event

import pytest

from fledge.errors import CorruptError
from fledge.tree.content import (
    HASH_SIZE,
    READ_SIZE,
    Blob,
    DataExtent,
    OpenFile,
    Span,
    Sparse,
    content_digest,
    equal_contents,
    hash_file,
    scan_file,
)
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


def opened(path: Path) -> OpenFile:
    return OpenFile(os.open(path, os.O_RDONLY))


@pytest.mark.parametrize("size", [0, 1, READ_SIZE, READ_SIZE + 1])
def test_equal_contents(tmp_path: Path, size: int) -> None:
    """A span equals the same bytes elsewhere, also in memory, and has their digest."""
    path = tmp_path / "data"
    data = (b"0123456789" * (size // 10 + 1))[:size]
    path.write_bytes(b"-" * 100 + data + b"+" + data)
    first = Span(path, 100, size, opened=opened(path))
    second = Span(path, 101 + size, size, opened=opened(path))
    other = Span(path, 99, size, opened=opened(path))
    half = size // 2
    pieces = [DataExtent(0, 100, half), DataExtent(half, 100 + half, size - half)]
    sparse = Sparse(size, path, tuple(each for each in pieces if each.length))
    assert equal_contents(first, second)
    assert equal_contents(first, Span(path, 100, size))
    assert equal_contents(sparse, sparse)
    assert equal_contents(first, other) == (size == 0)
    assert not equal_contents(first, Span(path, 100, size + 1, opened=opened(path)))
    expected = hashlib.sha256(data).hexdigest()
    assert content_digest(first).hex == content_digest(sparse).hex == expected
    if size < READ_SIZE:
        assert equal_contents(first, data)


def test_holes_are_never_read_to_compare(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"x" * 10)
    one = Sparse(1 << 60, path, (DataExtent(1 << 50, 0, 10),))
    assert equal_contents(one, Sparse(1 << 60, path, (DataExtent(1 << 50, 0, 10),)))
    assert not equal_contents(one, Sparse(1 << 60, path, (DataExtent(1 << 49, 0, 10),)))


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"x" * 10)
    content = Span(path, 0, 10, opened=opened(path))
    os.truncate(path, 5)
    with pytest.raises(CorruptError, match="changed while it was read"):
        content_digest(content)
    with pytest.raises(CorruptError, match="changed while it was read"):
        equal_contents(content, content)


@pytest.mark.parametrize("holes", [[], [0], [1], [2], [0, 2], [0, 1, 2]])
def test_data_between_holes_has_a_digest_of_its_own(tmp_path: Path, holes: list[int]) -> None:
    path = tmp_path / "data"
    pieces = [bytes(HASH_SIZE) if n in holes else b"x" * HASH_SIZE for n in range(3)]
    path.write_bytes(b"".join(pieces))
    blob, content = scan_file(path)
    assert blob.digest == Digest.of(b"".join(pieces))
    data = b"".join(piece for n, piece in enumerate(pieces) if n not in holes)
    if holes:
        assert isinstance(content, Sparse)
        assert content.data_digest == Digest.of(data)
    else:
        assert content is blob
