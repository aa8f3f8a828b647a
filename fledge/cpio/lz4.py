"""Compresses with LZ4 to a legacy frame, the only one that Linux unpacks.

lz4_Frame_format.md of LZ4, "Legacy frame": the magic number, then blocks, each behind its size in
32 bits. Every block is compressed by itself and holds 8 MiB, the last one the rest. Nothing marks
the end, so that the file has to end there, or four zeros have to follow.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from functools import partial

import lz4.block

from fledge.cpio import chunks
from fledge.tree.compression import LZ4_BLOCK_SIZE, LZ4_MAGIC

LEVEL = 9
"""The default level, of 1 to 12, as of the program lz4. The speed of unpacking is the same."""


def compress(pieces: Iterable[bytes], level: int = LEVEL) -> Iterator[bytes]:
    """Compress the concatenation of the pieces to one legacy frame."""
    yield LZ4_MAGIC
    yield from chunks.compress_each(
        chunks.split(pieces, LZ4_BLOCK_SIZE), partial(_block, level=level)
    )


def _block(chunk: bytes, level: int) -> bytes:
    """Compress one block, with its size before it."""
    block: bytes = lz4.block.compress(
        chunk, mode="high_compression", compression=level, store_size=False
    )
    return struct.pack("<I", len(block)) + block
