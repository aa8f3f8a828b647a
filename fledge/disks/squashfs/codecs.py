"""Compresses and decompresses blocks, each by itself, with the compressors of squashfs.

gzip means a zlib stream (RFC 1950). What is decompressed is hostile: no output grows beyond the
size of its block.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from lzma import FORMAT_ALONE, FORMAT_XZ, LZMADecompressor, LZMAError

import deflate
import lz4.block
import zstandard
from pyzstd import DParameter, ZstdDecompressor, ZstdError

from fledge.disks.squashfs.structures import MAX_BLOCK_SIZE, Codec
from fledge.errors import MalformedError
from fledge.tree.compression import MAX_XZ_MEMORY

Compress = Callable[[bytes], bytes]

Decompress = Callable[[bytes, int], bytes]
"""Decompresses a block to at most so many bytes. Raises `MalformedError`."""


def compressor(codec: Codec, level: int) -> Compress:
    """Return a function that compresses a block with gzip or zstd, for any thread."""
    if codec is Codec.GZIP:
        return lambda block: bytes(deflate.zlib_compress(block, level))
    # A new context for each block takes no longer than one that is used again.
    return lambda block: zstandard.ZstdCompressor(level=level).compress(block)


def decompressor(codec: Codec) -> Decompress | None:
    """Return a function that decompresses a block, for any thread; None if fledge cannot."""
    return _DECOMPRESSORS.get(codec)


def _gunzip(block: bytes, most: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(block, most + 1)
    except zlib.error as error:
        raise _damaged(error) from error
    return _checked(data, most, stream.eof)


def _unxz(block: bytes, most: int, form: int) -> bytes:
    stream = LZMADecompressor(form, MAX_XZ_MEMORY)
    try:
        data = stream.decompress(block, most + 1)
        if not stream.eof and len(data) <= most:
            data += stream.decompress(b"", most + 1 - len(data))
    except (LZMAError, EOFError) as error:
        raise _damaged(error) from error
    return _checked(data, most, stream.eof)


def _unlz4(block: bytes, most: int) -> bytes:
    try:
        data: bytes = lz4.block.decompress(block, most)
    except (lz4.block.LZ4BlockError, ValueError) as error:
        raise _damaged(error) from error
    return data


def _unzstd(block: bytes, most: int) -> bytes:
    # Linux has no more memory for a window either.
    stream = ZstdDecompressor(option={DParameter.windowLogMax: MAX_BLOCK_SIZE.bit_length() - 1})
    try:
        data = stream.decompress(block, most + 1)
    except ZstdError as error:
        raise _damaged(error) from error
    return _checked(data, most, stream.eof)


def _checked(data: bytes, most: int, is_whole: bool) -> bytes:
    if len(data) > most:
        raise MalformedError(f"a block has more than {most} bytes")
    if not is_whole:
        raise MalformedError("a compressed block is truncated")
    return data


def _damaged(error: Exception) -> MalformedError:
    return MalformedError(f"a block cannot be decompressed: {error}")


_DECOMPRESSORS: dict[Codec, Decompress] = {
    Codec.GZIP: _gunzip,
    Codec.LZMA: partial(_unxz, form=FORMAT_ALONE),
    Codec.XZ: partial(_unxz, form=FORMAT_XZ),
    Codec.LZ4: _unlz4,
    Codec.ZSTD: _unzstd,
}
