"""Decompresses contents of an image."""

from __future__ import annotations

from collections.abc import Iterator

import lz4.block

from fledge.disks.erofs.clusters import MAX_EXTENT_SIZE, Extent, extents
from fledge.disks.erofs.compression import Codec
from fledge.disks.erofs.structures import Incompat
from fledge.disks.erofs.volume import StoredInode, Volume
from fledge.errors import MalformedError
from fledge.tree.compression import ERRORS, unzstd
from fledge.tree.content import READ_SIZE

MIN_MATCH = 4
"""Bytes that a reference of LZ4 copies beside the length in it."""
LAST_LITERALS = bytes(5)
"""As many literals as a block ends with, at least."""
LONG = 0xF
"""A length of four bits that goes on in further bytes, as long as these are 255."""


def unpack(
    volume: Volume, stored: StoredInode, begin: int, end: int
) -> Iterator[tuple[int, bytes]]:
    """Decompress the extents of an inode of which some is between ``begin`` and ``end``.

    Yields them as `fledge.tree.content.Packed.unpack` does. Raises `MalformedError`, `OSError`.
    """
    offset = 0
    for extent in extents(volume, stored):
        if offset >= end:
            return
        if offset + extent.size > begin:
            data = _decompress(volume, extent)
            for start in range(0, len(data), READ_SIZE):
                yield offset + start, data[start : start + READ_SIZE]
        offset += extent.size


def _decompress(volume: Volume, extent: Extent) -> bytes:
    data = volume.read_data(extent.position, extent.data_size)
    try:
        if extent.codec is None:
            found = data
        elif extent.codec is Codec.ZSTD:
            found = unzstd().decompress(data.lstrip(b"\0"), extent.size)
        elif volume.superblock.feature_incompat & Incompat.ZERO_PADDING:
            found = lz4.block.decompress(data.lstrip(b"\0"), extent.size)
        else:
            block, most = lz4_start(data, extent.size)
            found = lz4.block.decompress(block, most)[: extent.size]
    except (*ERRORS, lz4.block.LZ4BlockError, ValueError) as error:
        raise MalformedError(f"it cannot be decompressed: {error}") from error
    if len(found) != extent.size:
        raise MalformedError(f"{len(found)} bytes of it are where {extent.size} should be")
    return found


def lz4_start(data: bytes, size: int) -> tuple[bytes, int]:
    """Return an LZ4 block that decompresses to ``size`` bytes or more, and room for all of them.

    Without ZERO_PADDING, ``data`` may decompress to more, and nothing says where it ends. A block
    consists of sequences: a token, literals, and a reference to earlier bytes, which the last
    sequence lacks (lz4_Block_format.md of LZ4). Raises `MalformedError`.
    """
    position = found = 0
    head = literals = b""
    try:
        while found < size:
            start, token = position, data[position]
            length, position = _length(data, position + 1, token >> 4)
            head, literals = data[:start], data[position : position + length]
            position += length
            found += length
            if found < size:
                length, position = _length(data, position + 2, token & LONG)
                found += length + MIN_MATCH
                head, literals = data[:position], b""
    except IndexError as error:
        raise MalformedError("its LZ4 data has no end") from error
    if position > len(data) or found > MAX_EXTENT_SIZE:
        raise MalformedError("its LZ4 data is too short or too long")
    return head + _last_sequence(literals), found + len(LAST_LITERALS)


def _length(data: bytes, position: int, length: int) -> tuple[int, int]:
    """Return a length, of which four bits are known, and the position behind its other bytes."""
    if length == LONG:
        while True:
            byte = data[position]
            position += 1
            length += byte
            if byte != 0xFF:
                break
    return length, position


def _last_sequence(literals: bytes) -> bytes:
    """Return the sequence that ends a block with these literals and some more."""
    literals += LAST_LITERALS
    if len(literals) < LONG:
        return bytes([len(literals) << 4]) + literals
    whole, rest = divmod(len(literals) - LONG, 0xFF)
    return bytes([LONG << 4, *[0xFF] * whole, rest]) + literals
