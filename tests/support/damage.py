"""Damages what a reader reads, to see that it survives."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import strategies as st

Places = list[tuple[int, int]]
"""The position and size of a part of an image."""


@contextmanager
def overwritten(path: Path, pieces: list[tuple[int, bytes]]) -> Iterator[None]:
    """Replace bytes at these positions temporarily."""
    with path.open("r+b", buffering=0) as file:
        before = [
            (position, os.pread(file.fileno(), len(data), position)) for position, data in pieces
        ]
        for position, data in pieces:
            os.pwrite(file.fileno(), data, position)
        try:
            yield
        finally:
            for position, data in reversed(before):
                os.pwrite(file.fileno(), data, position)


def reads(read: Callable[[], object]) -> Places:
    """Return the position and size of each os.pread() of the reader."""
    seen: Places = []
    with pytest.MonkeyPatch.context() as patch:
        pread = os.pread

        def spy(descriptor: int, size: int, position: int) -> bytes:
            seen.append((position, size))
            return pread(descriptor, size, position)

        patch.setattr(os, "pread", spy)
        read()
    return seen


VALUES = st.sampled_from([0, 1, 2, 7, 11, 12, 13, 255, 1024, 4096, 0x7FFF, 0x8000, 0xFFFF])


@st.composite
def mutations(draw: st.DrawFn, path: Path, places: Places) -> list[tuple[int, bytes]]:
    """Change a few fields, or copy parts of structures, where the reader reads."""
    pieces: list[tuple[int, bytes]] = []
    for _ in range(draw(st.integers(1, 4))):
        start, size = draw(st.sampled_from(places))
        # Most fields that matter are at the beginning.
        offset = draw(st.integers(0, min(size, 128) - 4) | st.integers(0, size - 4))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            data = draw(st.binary(min_size=1, max_size=4))
        elif kind == 1:
            data = draw(VALUES | st.integers(0, 0xFFFF)).to_bytes(2, "little")
            offset -= offset % 2
        elif kind == 2:
            data = draw(VALUES | st.integers(0, 0xFFFFFFFF)).to_bytes(4, "little")
            offset -= offset % 4
        else:
            other, other_size = draw(st.sampled_from(places))
            length = min(size, other_size)
            with path.open("rb") as file:
                data, offset = os.pread(file.fileno(), length, other), 0
        pieces.append((start + offset, data))
    return pieces
