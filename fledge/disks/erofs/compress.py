"""Compresses the contents of files before a filesystem is planned.

What an extent takes decides where everything after it goes. So all of them are compressed into a
temporary file, on all cores, and copied from there when their places are known.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import lz4.block
import msgspec
import zstandard

from fledge.disks.erofs.compression import EXTENT_BLOCKS, Codec, Compressed
from fledge.disks.erofs.structures import BLOCK_SIZE
from fledge.host.files import NewFile, pwrite
from fledge.host.parallel import ordered
from fledge.report import Transfer
from fledge.tree import File
from fledge.tree.content import Content, OpenFile, Span, Sparse, content_size, read_content

THREADS = 8
WINDOW = 4 * THREADS
"""Extents in memory at the same time."""


def compress(
    files: Iterable[File], codec: Codec, level: int, temporary: NewFile, progress: Transfer
) -> dict[File, Compressed]:
    """Compress files with ``codec``, and return those that get smaller.

    ``temporary`` is a file that must not exist; it lives as long as a content refers to it.
    ``progress`` is told the bytes of the contents. Raises the errors of `read_content`, and
    `OSError` if the disk refuses.
    """
    opened = OpenFile(temporary.create())
    os.unlink(temporary.name, dir_fd=temporary.folder)
    compressed: dict[File, Compressed] = {}
    start = position = 0
    counts = bytearray()
    size = EXTENT_BLOCKS[codec] * BLOCK_SIZE
    extents = _extents(files, size)
    with closing(ordered(_Compressor(codec, level).pack, extents, THREADS, WINDOW)) as packed:
        for extent in packed:
            progress.advance(extent.size)
            pwrite(opened.descriptor, extent.data, position)
            position += len(extent.data)
            counts.append(extent.blocks)
            if not extent.is_last:
                continue
            if any(counts):
                data = Span(Path(temporary.name), start, position - start, opened=opened)
                compressed[extent.file] = Compressed(codec, bytes(counts), data)
            else:
                position = start
            start, counts = position, bytearray()
    return compressed


class _Extent(msgspec.Struct, frozen=True):
    """A part of a file, before or after it is compressed."""

    file: File
    size: int
    """Bytes of the content."""
    data: bytes
    is_last: bool
    blocks: int = 0
    """As in `Compressed.block_counts`."""


def _extents(files: Iterable[File], size: int) -> Iterator[_Extent]:
    """Yield the extents of all files that could get smaller. Holes are stored in another way."""
    for file in files:
        left = content_size(file.content)
        if left > BLOCK_SIZE and not isinstance(file.content, Sparse):
            for data in _parts(file.content, size):
                left -= len(data)
                yield _Extent(file, len(data), data, is_last=not left)


def _parts(content: Content, size: int) -> Iterator[bytes]:
    """Yield a content in parts of ``size`` bytes; the last one may be shorter."""
    buffer = bytearray()
    for piece in read_content(content):
        buffer += piece
        whole = len(buffer) - len(buffer) % size
        for start in range(0, whole, size):
            yield bytes(buffer[start : start + size])
        del buffer[:whole]
    if buffer:
        yield bytes(buffer)


class _Compressor:
    """Compresses extents, in any thread."""

    def __init__(self, codec: Codec, level: int) -> None:
        self._codec = codec
        self._level = level
        self._of_thread = threading.local()

    def pack(self, extent: _Extent) -> _Extent:
        """Return the blocks of an extent: compressed if that saves one, or else as it is."""
        data = self._compress(extent.data)
        blocks = -(-len(data) // BLOCK_SIZE)
        if blocks >= -(-extent.size // BLOCK_SIZE):
            plain = extent.data + bytes(-extent.size % BLOCK_SIZE)
            return msgspec.structs.replace(extent, data=plain)
        padded = data.rjust(blocks * BLOCK_SIZE, b"\0")
        return msgspec.structs.replace(extent, data=padded, blocks=blocks)

    def _compress(self, data: bytes) -> bytes:
        if self._codec is Codec.LZ4:
            packed: bytes = lz4.block.compress(
                data, mode="high_compression", compression=self._level, store_size=False
            )
            return packed
        if not hasattr(self._of_thread, "zstd"):
            # One for each thread: they cannot be shared.
            self._of_thread.zstd = zstandard.ZstdCompressor(self._level)
        return bytes(self._of_thread.zstd.compress(data))
