"""Files that are written in parts and hashed at the same time."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.host import output
from fledge.host.output import BUFFER_SIZE, MIN_HOLE, Hasher, Output

Parts = list[tuple[int, int]]
"""Sizes of gaps, and bytes written after them."""

DISTANCES = st.one_of(
    st.integers(0, 3),
    st.sampled_from([511, 4096, MIN_HOLE - 1, MIN_HOLE, BUFFER_SIZE - 1, BUFFER_SIZE]),
    st.integers(0, 3 * BUFFER_SIZE),
)


def noise(length: int, seed: int) -> bytes:
    """Bytes, some of them zeros."""
    block = hashlib.sha512(seed.to_bytes(8, "little")).digest()
    return (block * (length // len(block) + 1))[:length]


def put(path: Path, parts: Parts, rest: int) -> tuple[bytes, str]:
    """The expected content of the file, and the digest."""
    expected = bytearray()
    with (
        path.open("wb", buffering=0) as file,
        closing(Hasher()) as hasher,
        closing(Output(file.fileno(), hasher)) as output,
    ):
        for seed, (gap, length) in enumerate(parts):
            expected += bytes(gap)
            output.write(data := noise(length, seed), len(expected))
            expected += data
        expected += bytes(rest)
        output.finish(len(expected))
        return bytes(expected), hasher.digest().hex


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(DISTANCES, DISTANCES), max_size=4), DISTANCES)
def test_what_is_put_is_what_is_there(parts: Parts, rest: int) -> None:
    for folder in (Path("/dev/shm"), Path.cwd()):  # tmpfs, which may not support O_DIRECT
        path = folder / f"fledge-test-{os.getpid()}"
        try:
            expected, digest = put(path, parts, rest)
            assert path.read_bytes() == expected
            assert digest == hashlib.sha256(expected).hexdigest()
        finally:
            path.unlink()


def test_a_filesystem_that_refuses_a_direct_write_gets_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "ALIGNMENT", 1)  # no disk supports such positions
    path = tmp_path / "file"
    expected, digest = put(path, [(3, 5000), (3 * MIN_HOLE, 7)], 0)
    assert path.read_bytes() == expected
    assert digest == hashlib.sha256(expected).hexdigest()


def test_many_zeros_are_a_hole_whether_put_or_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb", buffering=0) as file, closing(Output(file.fileno())) as output:
        output.write(b"a" * 4096, 0)
        output.write(bytes(5 * BUFFER_SIZE), 3 * BUFFER_SIZE)
        output.write(b"b" * 4096, 9 * BUFFER_SIZE)
        output.finish(1 << 28)
    assert path.stat().st_size == 1 << 28
    assert path.stat().st_blocks * 512 <= 4 * MIN_HOLE


def test_a_full_disk_is_told() -> None:
    with (
        open("/dev/full", "wb", buffering=0) as full,  # noqa: PTH123
        closing(Output(full.fileno())) as output,
        pytest.raises(OSError) as caught,
    ):
        for number in range(100):
            output.write(b"x" * BUFFER_SIZE, number * BUFFER_SIZE)
    assert caught.value.errno == errno.ENOSPC


def test_an_interrupt_ends_the_threads_at_once(tmp_path: Path) -> None:
    before = threading.active_count()
    path = tmp_path / "file"
    with (
        path.open("wb", buffering=0) as file,
        pytest.raises(KeyboardInterrupt),
        closing(Hasher()) as hasher,
        closing(Output(file.fileno(), hasher)) as output,
    ):
        output.write(b"x", 1 << 43)  # hashing the zeros would take hours
        raise KeyboardInterrupt
    assert threading.active_count() == before
