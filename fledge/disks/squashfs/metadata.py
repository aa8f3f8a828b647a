"""Writes and reads metadata: streams in pieces of 8 KiB, and lookup tables made of them.

The layout is drawn in `structures`.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from fledge.disks.squashfs.codecs import Compress, Decompress
from fledge.disks.squashfs.structures import (
    METADATA_HEADER,
    METADATA_PLAIN,
    METADATA_SIZE,
    REFERENCE,
)
from fledge.errors import MalformedError

CACHED_PIECES = 512
"""Pieces that a reader keeps: 4 MiB."""


class Stream:
    """A stream of metadata that is written."""

    def __init__(self, compress: Compress) -> None:
        self._compress = compress
        self._pieces = bytearray()
        self._last = bytearray()
        """What is not compressed yet: less than a piece."""
        self.starts: list[int] = []
        """The position of each finished piece in the stream."""

    @property
    def start(self) -> int:
        """The position, in the stream, of the piece that the next byte is in."""
        return len(self._pieces)

    @property
    def offset(self) -> int:
        """The offset of the next byte in its piece."""
        return len(self._last)

    @property
    def reference(self) -> int:
        """The reference to the next byte."""
        return self.start << 16 | self.offset

    def write(self, data: bytes) -> None:
        """Add bytes."""
        self._last += data
        while len(self._last) >= METADATA_SIZE:
            self._add(bytes(self._last[:METADATA_SIZE]))
            del self._last[:METADATA_SIZE]

    def finish(self) -> bytes:
        """Return the whole stream."""
        if self._last:
            self._add(bytes(self._last))
            self._last.clear()
        return bytes(self._pieces)

    def _add(self, piece: bytes) -> None:
        self.starts.append(len(self._pieces))
        packed = self._compress(piece)
        if len(packed) < len(piece):
            self._pieces += METADATA_HEADER.pack(len(packed)) + packed
        else:
            self._pieces += METADATA_HEADER.pack(len(piece) | METADATA_PLAIN) + piece


def lookup_table(records: Iterable[bytes], position: int, compress: Compress) -> tuple[bytes, int]:
    """Return a lookup table that begins at ``position``, and the position of its index."""
    stream = Stream(compress)
    for record in records:
        stream.write(record)
    pieces = stream.finish()
    index = b"".join(REFERENCE.pack(position + start) for start in stream.starts)
    return pieces + index, position + len(pieces)


class _Piece(NamedTuple):
    data: bytes
    end: int
    """The position in the image of the piece that follows."""


class Metadata:
    """Reads pieces of metadata of an image, of which it keeps some."""

    def __init__(self, descriptor: int, size: int, decompress: Decompress) -> None:
        """``descriptor``: the image, open for reading. ``size``: bytes of it that are in use."""
        self._descriptor = descriptor
        self._size = size
        self._decompress = decompress
        self._cache: OrderedDict[int, _Piece] = OrderedDict()

    def read(self, position: int, size: int) -> bytes:
        """Return ``size`` bytes of the image as they are. Raises `MalformedError`."""
        if not (0 <= position <= self._size and size <= self._size - position):
            raise MalformedError(f"it refers to byte {position + size}, beyond the end")
        data = os.pread(self._descriptor, size, position)
        if len(data) < size:
            raise MalformedError(f"it ends at byte {position + len(data)}")
        return data

    def piece(self, position: int) -> _Piece:
        """Return the unpacked piece at a position in the image. Raises `MalformedError`."""
        if found := self._cache.get(position):
            self._cache.move_to_end(position)
            return found
        (header,) = METADATA_HEADER.unpack(self.read(position, METADATA_HEADER.size))
        # The largest size takes the place of the flag, so 0 stands for it.
        size = header & ~METADATA_PLAIN or METADATA_PLAIN
        if size > METADATA_SIZE:
            raise MalformedError(f"the metadata at byte {position} has {size} bytes")
        data = self.read(position + METADATA_HEADER.size, size)
        if not header & METADATA_PLAIN:
            data = self._decompress(data, METADATA_SIZE)
        piece = _Piece(data, position + METADATA_HEADER.size + size)
        self._cache[position] = piece
        if len(self._cache) > CACHED_PIECES:
            self._cache.popitem(last=False)
        return piece

    def cursor(self, table: int, reference: int) -> Cursor:
        """Return a cursor at a reference into the stream that begins at ``table``."""
        return Cursor(self, table + (reference >> 16), reference & 0xFFFF)

    def lookup(self, index: int, size: int, number: int) -> bytes:
        """Return a record of ``size`` bytes of the lookup table whose index is at ``index``."""
        place, offset = divmod(number * size, METADATA_SIZE)
        entry = self.read(index + place * REFERENCE.size, REFERENCE.size)
        data = self.piece(REFERENCE.unpack(entry)[0]).data[offset : offset + size]
        if len(data) < size:
            raise MalformedError(f"the table at byte {index} has no entry {number}")
        return data


class Cursor:
    """Reads on from a place in a stream of metadata."""

    def __init__(self, metadata: Metadata, position: int, offset: int) -> None:
        self._metadata = metadata
        self._position = position
        self._offset = offset

    def read(self, size: int) -> bytes:
        """Return the next ``size`` bytes. Raises `MalformedError`."""
        parts = []
        while size:
            piece = self._metadata.piece(self._position)
            if self._offset > len(piece.data) or not piece.data:
                raise MalformedError(f"byte {self._offset} is beyond the metadata there")
            part = piece.data[self._offset : self._offset + size]
            parts.append(part)
            self._offset += len(part)
            size -= len(part)
            if self._offset == len(piece.data) and size:
                self._position, self._offset = piece.end, 0
        return b"".join(parts)
