"""Compresses with gzip, reproducibly and on all cores.

libdeflate gives the same output on every machine, but it compresses only whole buffers. So the
input is split into chunks of a fixed size, each chunk is compressed separately, and the results
are joined to one DEFLATE stream in one gzip member (see `deflate_stream`). The number of threads
does not affect the output.

DEFLATE is RFC 1951, gzip is RFC 1952.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import deflate

from fledge.cpio.deflate_stream import continuable

LEVEL = 9
CHUNK_SIZE = 1 << 20
"""Bytes in a chunk. Larger chunks hardly improve compression."""

HEADER = bytes([0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 2, 255])
"""Magic number, DEFLATE, no flags, no time, best compression, unknown system (RFC 1952, 2.3)."""

EMPTY_FINAL_BLOCK = b"\x03\x00"
"""Ends the DEFLATE stream."""

MAX_THREADS = 8


def compress(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Compress the concatenation of the pieces to one gzip member."""
    threads = min(os.cpu_count() or 1, MAX_THREADS)
    pending: deque[Future[bytes]] = deque()
    crc = size = 0
    yield HEADER
    with ThreadPoolExecutor(threads) as pool:
        for chunk in _chunks(pieces):
            crc = deflate.crc32(chunk, crc)
            size += len(chunk)
            pending.append(pool.submit(_deflate, chunk))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    yield EMPTY_FINAL_BLOCK + struct.pack("<II", crc, size & 0xFFFFFFFF)


def _chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Split the concatenation of the pieces into chunks of `CHUNK_SIZE`."""
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        while len(buffer) >= CHUNK_SIZE:
            yield bytes(buffer[:CHUNK_SIZE])
            del buffer[:CHUNK_SIZE]
    if buffer:
        yield bytes(buffer)


def _deflate(chunk: bytes) -> bytes:
    """Compress one chunk to DEFLATE blocks that more blocks can follow."""
    return continuable(bytes(deflate.deflate_compress(chunk, LEVEL)))
