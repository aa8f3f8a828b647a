"""Hashes a file block by block, as dm-verity does: ``SHA-256(salt, block)``.

This module is also a program, which hashes a part of a file in a process of its own: hashing short
blocks keeps the interpreter's lock busy, so that threads would be no faster. It imports only what
starts in a few milliseconds, and nothing of fledge.
"""

import errno
import os
import sys
from collections.abc import Iterator
from hashlib import sha256

BLOCK_SIZE = 4096
"""Bytes of a block."""

DIGEST_SIZE = 32
"""Bytes of a digest."""

CHUNK_BLOCKS = 64
"""Blocks that are read at once, few enough for the cache of a processor."""


def block_digests(file: int, first: int, count: int, salt: bytes) -> Iterator[bytes]:
    """Yield the digests of ``count`` blocks of an open file from block ``first`` on, joined, for
    `CHUNK_BLOCKS` blocks at a time.

    Raises `OSError` if the file ends before, or cannot be read.
    """
    copy = sha256(salt).copy
    zeros = bytes(BLOCK_SIZE)
    zero_digest = sha256(salt + zeros).digest()
    data = bytearray(min(count, CHUNK_BLOCKS) * BLOCK_SIZE)
    view = memoryview(data)
    parts = [view[start : start + BLOCK_SIZE] for start in range(0, len(data), BLOCK_SIZE)]
    for start in range(first, first + count, CHUNK_BLOCKS):
        blocks = min(CHUNK_BLOCKS, first + count - start)
        size = blocks * BLOCK_SIZE
        if os.preadv(file, [view[:size]], start * BLOCK_SIZE) < size:
            raise OSError(errno.EIO, "the file has become shorter")
        found = []
        for number, part in enumerate(parts[:blocks]):
            if data.startswith(zeros, number * BLOCK_SIZE):
                found.append(zero_digest)
            else:
                state = copy()
                state.update(part)
                found.append(state.digest())
        yield b"".join(found)


def write_digests(
    source: int, first: int, count: int, salt: bytes, target: int, position: int
) -> None:
    """Write the digests of ``count`` blocks of one open file to another, from ``position`` on.

    Raises as `block_digests`.
    """
    for digests in block_digests(source, first, count, salt):
        left = digests
        while left:
            written = os.pwrite(target, left, position)
            left, position = left[written:], position + written


if __name__ == "__main__":
    source, first, count, target, position = map(int, sys.argv[1:6])
    write_digests(source, first, count, bytes.fromhex(sys.argv[6]), target, position)
