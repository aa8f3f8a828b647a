"""Compresses with gzip, reproducibly and on all cores.

libdeflate gives the same output on every machine, but it compresses only whole buffers. So the
input is split into chunks of a fixed size, each chunk is compressed separately, and the results
are joined to one DEFLATE stream in one gzip member (see `deflate_stream`). The number of threads
does not affect the output.

DEFLATE is RFC 1951, gzip is RFC 1952.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from functools import partial

import deflate

from fledge.cpio import chunks
from fledge.cpio.deflate_stream import continuable

LEVEL = 9
"""The default level, of 1 to 12. Above 9 libdeflate takes several times as long for 3%."""

CHUNK_SIZE = 1 << 20
"""Bytes in a chunk. Larger chunks hardly improve compression."""

EMPTY_FINAL_BLOCK = b"\x03\x00"
"""Ends the DEFLATE stream."""


def compress(pieces: Iterable[bytes], level: int = LEVEL) -> Iterator[bytes]:
    """Compress the concatenation of the pieces to one gzip member."""
    crc = size = 0

    def observed() -> Iterator[bytes]:
        nonlocal crc, size
        for chunk in chunks.split(pieces, CHUNK_SIZE):
            crc = deflate.crc32(chunk, crc)
            size += len(chunk)
            yield chunk

    yield _header(level)
    yield from chunks.compress_each(observed(), partial(_deflate, level=level))
    yield EMPTY_FINAL_BLOCK + struct.pack("<II", crc, size & 0xFFFFFFFF)


def _header(level: int) -> bytes:
    """Return the header (RFC 1952, 2.3): DEFLATE, no flags, no time, level, unknown system."""
    flag = 4 if level == 1 else 2 if level >= 9 else 0
    return bytes([0x1F, 0x8B, 8, 0, 0, 0, 0, 0, flag, 255])


def _deflate(chunk: bytes, level: int) -> bytes:
    """Compress one chunk to DEFLATE blocks that more blocks can follow."""
    return continuable(bytes(deflate.deflate_compress(chunk, level)))
