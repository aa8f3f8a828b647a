"""Writes the contents of files: blocks of one size, compressed on all cores.

A file is cut into blocks. The rest at its end, or all of a small file, goes into a fragment block
together with those of other files, until that is full. Blocks of zeros are not stored. A content
that was written already is not written again.

What is written does not depend on the number of cores: blocks are compressed each by itself, and
come in the order of the files.
"""

from __future__ import annotations

import hashlib
import os
import struct
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

import msgspec

from fledge.disks.squashfs.codecs import Compress
from fledge.disks.squashfs.structures import (
    DATA_PLAIN,
    FRAGMENT_ENTRY,
    NO_FRAGMENT,
    FragmentEntry,
)
from fledge.host.parallel import ordered
from fledge.report import Transfer
from fledge.tree import File
from fledge.tree.content import (
    Content,
    Packed,
    Sparse,
    content_size,
    read_content,
    read_extents,
)

MAX_THREADS = 16
"""More threads would only take more memory: each holds a block and the state of a compressor."""

_INDEX = struct.Struct("<Q")


class StoredFile(msgspec.Struct):
    """Where a content is in the image."""

    size: int
    """Bytes in the content."""
    sizes: array[int]
    """The stored size of each block, as in the inode. 0: a block of zeros."""
    start: int = 0
    """The position of the first block; 0 if no block is stored."""
    sparse: int = 0
    """Bytes in blocks of zeros."""
    fragment: int = NO_FRAGMENT
    """The number of the fragment block that has the end of the content."""
    offset: int = 0
    """Where the end begins in that block."""


class _Block(msgspec.Struct, frozen=True):
    """A block to compress, of a file or, if that is None, of fragments."""

    data: bytes
    file: StoredFile | None = None
    index: int = 0
    """Which block of the file it is."""


class DataWriter:
    """Writes the contents of files behind one another."""

    def __init__(
        self,
        file: BinaryIO,
        block_size: int,
        compress: Compress,
        progress: Transfer,
    ) -> None:
        """``file``: the image, at the position where the first block goes.

        ``progress`` is told the bytes of contents.
        """
        self._file = file
        self._position = file.tell()
        self._block_size = block_size
        self._zeros = bytes(block_size)
        self._compress = compress
        self._progress = progress
        self.files: dict[File, StoredFile] = {}
        """Where each content is."""
        self.fragments: list[bytes] = []
        """The entries of the table of fragments."""
        self._fragment = bytearray()
        """The fragment block that is not full yet."""
        self._full_fragments = 0

    def write(self, files: Sequence[File]) -> None:
        """Write the contents of all files, in their order.

        Raises as `read_content` does, and `OSError` if the image cannot be written.
        """
        threads = min(len(os.sched_getaffinity(0)), MAX_THREADS)
        for block, packed in ordered(self._packed, self._blocks(files), threads, 4 * threads):
            stored, size = packed, len(packed)
            if len(packed) >= len(block.data):
                stored, size = block.data, len(block.data) | DATA_PLAIN
            self._file.write(stored)
            if block.file is None:
                self.fragments.append(FRAGMENT_ENTRY.pack(FragmentEntry(self._position, size)))
            else:
                block.file.start = block.file.start or self._position
                block.file.sizes[block.index] = size
            self._position += len(stored)

    def _packed(self, block: _Block) -> tuple[_Block, bytes]:
        return block, self._compress(block.data)

    def _blocks(self, files: Sequence[File]) -> Iterator[_Block]:
        """Yield the blocks to compress; those of fragments when they are full."""
        sizes = Counter(content_size(file.content) for file in files)
        known: dict[tuple[int, bytes], StoredFile] = {}
        for file in files:
            size = content_size(file.content)
            # A small content is read once, a large one twice if another has the same size.
            parts = list(self._cut(file.content)) if size <= self._block_size else None
            key = None
            if sizes[size] > 1:
                key = size, _digest(self._cut(file.content) if parts is None else parts)
            if key in known:
                stored = known[key]
                self._progress.advance(size)
            else:
                stored = StoredFile(size, array("I", bytes(4 * (size // self._block_size))))
                yield from self._file_blocks(
                    stored, self._cut(file.content) if parts is None else parts
                )
                if key:
                    known[key] = stored
            self.files[file] = stored
        if self._fragment:
            yield self._take_fragment()

    def _file_blocks(
        self, stored: StoredFile, parts: Iterable[tuple[int, bytes]]
    ) -> Iterator[_Block]:
        """Yield the blocks of a content, and put its end into the fragment block."""
        done = 0
        for index, part in parts:
            done += len(part)
            self._progress.advance(len(part))
            if len(part) == self._block_size:
                yield _Block(part, stored, index)
                continue
            if len(self._fragment) + len(part) > self._block_size:
                yield self._take_fragment()
            stored.fragment, stored.offset = self._full_fragments, len(self._fragment)
            self._fragment += part
        stored.sparse = stored.size - done
        self._progress.advance(stored.sparse)
        if stored.size % self._block_size and stored.fragment == NO_FRAGMENT:
            stored.sizes.append(0)

    def _take_fragment(self) -> _Block:
        block = _Block(bytes(self._fragment))
        self._fragment.clear()
        self._full_fragments += 1
        return block

    def _cut(self, content: Content) -> Iterator[tuple[int, bytes]]:
        """Yield the number and bytes of each block that is not all zeros, and of the end."""
        for index, block in _without_holes(content, self._block_size):
            if not self._zeros.startswith(block):
                yield index, block


def _without_holes(content: Content, block_size: int) -> Iterator[tuple[int, bytes]]:
    """Yield the number and bytes of each block of a content that is not all in a hole."""
    if isinstance(content, Sparse | Packed):
        yield from _data_blocks(content, block_size)
        return
    index, rest = 0, b""
    for piece in read_content(content):
        data = rest + piece if rest else piece
        whole = len(data) - len(data) % block_size
        for start in range(0, whole, block_size):
            yield index, data[start : start + block_size]
            index += 1
        rest = data[whole:]
    if rest:
        yield index, rest


def _data_blocks(content: Sparse | Packed, block_size: int) -> Iterator[tuple[int, bytes]]:
    """Yield the same as `_without_holes`, of a content that may have holes."""
    index, block = 0, bytearray()
    for start, piece in read_extents(content):
        position, left = start, memoryview(piece)
        while left:
            number, offset = divmod(position, block_size)
            if number != index and block:
                yield index, bytes(block).ljust(block_size, b"\0")
                block.clear()
            index = number
            part = left[: block_size - offset]
            block += bytes(offset - len(block))
            block += part
            position, left = position + len(part), left[len(part) :]
    if block:
        yield index, bytes(block).ljust(min(block_size, content.size - index * block_size), b"\0")


def _digest(parts: Iterable[tuple[int, bytes]]) -> bytes:
    """Return a digest that tells contents of one size apart."""
    sha256 = hashlib.sha256()
    for index, part in parts:
        sha256.update(_INDEX.pack(index))
        sha256.update(part)
    return sha256.digest()
