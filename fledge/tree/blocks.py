"""The blocks of a content: those with data, and those that are not all zeros."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from fledge.tree.content import (
    READ_SIZE,
    Content,
    DataExtent,
    Packed,
    Sparse,
    content_size,
    read_content,
    read_extents,
)

BLOCK_SIZE = 4096
"""Bytes. An aligned block of zeros becomes a hole in the artifact."""

ZERO_BLOCK = bytes(BLOCK_SIZE)


class Run(NamedTuple):
    """Adjacent blocks, or other units of equal size."""

    start: int
    length: int


def data_runs(extents: Iterable[DataExtent]) -> Iterator[Run]:
    """Yield the blocks of a content that have data. Extents may share a block."""
    return merged_runs(
        (extent.offset // BLOCK_SIZE, -(-(extent.offset + extent.length) // BLOCK_SIZE))
        for extent in extents
    )


def merged_runs(ranges: Iterable[tuple[int, int]]) -> Iterator[Run]:
    """Join ascending ranges, each a begin and an end, that touch or overlap."""
    start = end = 0
    for first, last in ranges:
        if first > end:
            if end > start:
                yield Run(start, end - start)
            start = first
        end = max(end, last)
    if end > start:
        yield Run(start, end - start)


def nonzero_blocks(content: Content) -> Iterator[tuple[int, bytes]]:
    """Yield the offset and bytes of each block that is not all zeros, whether stored or in a hole.

    Only the last block may be shorter than `BLOCK_SIZE`. Raises the errors of `read_content`.
    """
    for start, piece in data_pieces(content):
        for begin, end in nonzero_runs(piece):
            for position in range(begin, end, BLOCK_SIZE):
                yield start + position, piece[position : min(position + BLOCK_SIZE, end)]


def data_pieces(content: Content) -> Iterator[tuple[int, bytes]]:
    """Yield the offset and bytes of the data outside the holes of a `Sparse` or `Packed`.

    Each piece is a number of whole blocks; only the last may end within a block. Raises the
    errors of `read_content`.
    """
    pieces = (
        read_extents(content) if isinstance(content, Sparse | Packed) else _consecutive(content)
    )
    buffer = bytearray()
    start = 0
    for offset, piece in pieces:
        if offset >= start + len(buffer) + BLOCK_SIZE:
            yield start, bytes(buffer) + bytes(-len(buffer) % BLOCK_SIZE)
            buffer.clear()
            start = offset - offset % BLOCK_SIZE
        buffer += bytes(offset - start - len(buffer))
        buffer += piece
        whole = len(buffer) - len(buffer) % BLOCK_SIZE
        if whole >= READ_SIZE:
            yield start, bytes(buffer[:whole])
            del buffer[:whole]
            start += whole
    left = content_size(content) - start - len(buffer)
    yield start, bytes(buffer) + bytes(min(-len(buffer) % BLOCK_SIZE, left))


def _consecutive(content: Content) -> Iterator[tuple[int, bytes]]:
    offset = 0
    for piece in read_content(content):
        yield offset, piece
        offset += len(piece)


def nonzero_runs(piece: bytes) -> Iterator[tuple[int, int]]:
    """Yield the begin and end of each run of adjacent blocks that are not all zeros."""
    begin = None
    for block in range(0, len(piece), BLOCK_SIZE):
        if piece.startswith(ZERO_BLOCK[: len(piece) - block], block):
            if begin is not None:
                yield begin, block
            begin = None
        elif begin is None:
            begin = block
    if begin is not None:
        yield begin, len(piece)
