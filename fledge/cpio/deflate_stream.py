"""Converts a finished DEFLATE stream so that another stream can follow it (RFC 1951).

A compressor for whole buffers marks the last block of its output as final, and the output can end
at any bit of a byte. To join the outputs of several buffers, `continuable` clears that mark and
appends an empty stored block, which always ends on a byte boundary (zlib calls this a sync flush).
The mark is the first bit of the last block. Finding that block takes decoding.

A worked example: libdeflate compresses twenty "a" to the bytes 4b 4c c4 04 00. These are the bits,
the lowest bit of each byte first:

    1      final block
    10     type 1: fixed codes
    10010001 10010001          "a" "a"
    0001100 1 00000            18 more bytes, copied from 1 byte back
    0000000                    end of the block, after 39 bits
    0                          padding

`last_block` returns (0, 39). `continuable` clears bit 0, appends the header 000 of a stored block
after bit 39, pads to a whole byte, and appends the length 0 and its complement:
4a 4c c4 04 00 00 00 00 ff ff.
"""

from __future__ import annotations

import zlib

WINDOW_SIZE = 1 << 15
"""Maximum distance of a back reference, in bytes."""

INFLATE_STEP = 1 << 13
"""Bytes given to zlib at once."""

EMPTY_STORED_BLOCK = b"\x00\x00\xff\xff"
"""Length 0 and its complement. The three header bits and the padding before it are zero."""

STORED = 0b000
"""The second and third header bit of a stored block: its type. The first bit marks the final
block."""


def continuable(stream: bytes) -> bytes:
    """Return the blocks of a finished stream, none of them final, ending on a byte boundary."""
    start, end = last_block(stream)
    size = (end + 3 + 7) // 8
    blocks = bytearray(stream[:size].ljust(size, b"\0"))
    blocks[start // 8] ^= 1 << start % 8
    return bytes(blocks) + EMPTY_STORED_BLOCK


def last_block(stream: bytes) -> tuple[int, int]:
    """Return where the final block of a DEFLATE stream begins and ends, in bits.

    The header of a stored block gives its length. Other blocks must be decoded to find their
    end, and zlib reports the end only of a final block. So each block is decoded as if it were
    the final one: shifted to a byte boundary, with its first bit set.
    """
    window = b""
    start = 0
    while True:
        header = int.from_bytes(stream[start // 8 : start // 8 + 2], "little") >> start % 8
        if header & 0b110 == STORED:
            data = (start + 3 + 7) // 8 + len(EMPTY_STORED_BLOCK)
            size = int.from_bytes(stream[data - 4 : data - 2], "little")
            output = stream[data : data + size]
            end = (data + size) * 8
        else:
            length, output = _compressed_block(stream, start, window)
            end = start + length
        if header & 1:
            return start, end
        window = (window + output)[-WINDOW_SIZE:]
        start = end


def _compressed_block(stream: bytes, begin: int, window: bytes) -> tuple[int, bytes]:
    """Decode the block at bit ``begin``: its length in bits, its output."""
    inflater = zlib.decompressobj(-15, zdict=window)
    outputs: list[bytes] = []
    for start in range(0, len(stream) - begin // 8, INFLATE_STEP):
        piece = _shifted(stream, begin + 8 * start, INFLATE_STEP)
        if not start:
            piece = bytes([piece[0] | 1]) + piece[1:]
        before = inflater.copy()
        outputs.append(inflater.decompress(piece))
        if inflater.eof:
            last_byte = len(piece) - len(inflater.unused_data) - 1
            end = _end_in_last_byte(before, piece[: last_byte + 1], outputs[-1])
            return (start + last_byte) * 8 + end, b"".join(outputs)
    raise AssertionError("libdeflate wrote a block without an end")


def _shifted(stream: bytes, begin: int, size: int) -> bytes:
    """Return ``size`` bytes from bit ``begin`` on; fewer at the end, with zeros behind it.

    Only what is asked for is shifted, for a long number takes as long as compressing a part of it.
    """
    first, bits = divmod(begin, 8)
    size = min(size, len(stream) - first)
    number = int.from_bytes(stream[first : first + size + 1], "little") >> bits
    return (number & (1 << 8 * size) - 1).to_bytes(size, "little")


def _end_in_last_byte(inflater: zlib._Decompress, tail: bytes, output: bytes) -> int:
    """Return how many bits of the last byte of ``tail`` belong to the block.

    Only bits of the block affect its output. If its last bit is flipped, the end-of-block code
    becomes a different code, and the output changes.
    """
    output = output[len(inflater.decompress(tail[:-1])) :]
    for used in range(8, 1, -1):
        trial = inflater.copy()
        try:
            same = trial.decompress(bytes([tail[-1] ^ 1 << used - 1])) == output and trial.eof
        except zlib.error:
            same = False
        if not same:
            return used
    return 1
