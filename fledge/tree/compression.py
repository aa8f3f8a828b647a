"""Decompression of what comes from outside: gzip, zstd and xz, with bounded memory.

RFC 1952 (gzip), RFC 8878 (zstd), and the .xz file format of tukaani.org.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from lzma import FORMAT_XZ, LZMADecompressor, LZMAError
from typing import Protocol

from isal import igzip_lib
from pyzstd import DParameter, ZstdDecompressor, ZstdError

from fledge.errors import CorruptError

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
XZ_MAGIC = b"\xfd7zXZ\0"
SKIPPABLE_MAGIC = tuple(bytes([0x50 + n, 0x2A, 0x4D, 0x18]) for n in range(16))
"""How skippable frames of zstd begin (RFC 8878 section 3.1.2), which may come before the first
other."""

ERRORS: tuple[type[Exception], ...] = (
    igzip_lib.IsalError,  # type: ignore[assignment]  # the stubs take the class for an instance
    ZstdError,
    LZMAError,
)

INPUT_SIZE = 64 << 10
"""Bytes that a decompressor gets at once. What it leaves over at the end of each member or
frame is copied, so more would let a blob of many empty ones cost quadratic time."""

OUTPUT_SIZE = 256 << 10
"""Bytes that a decompressor gives at once. Four times as much takes a tenth longer."""

MAX_WINDOW_LOG = 27
"""128 MiB, what the zstd command accepts unasked: how much memory a frame may claim."""

MAX_XZ_MEMORY = 192 << 20
"""Bytes that an xz stream may claim: twice what the largest preset of the xz command needs."""

MAX_SIZE = 1 << 37
"""128 GiB, several times the largest layers there are. A bomb ends there, or when the disk is
full; either way nothing of it stays."""


class Decompressor(Protocol):
    """What the decompressors of isal, pyzstd and lzma have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def gunzip() -> Decompressor:
    return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)


def unzstd() -> Decompressor:
    return ZstdDecompressor(option={DParameter.windowLogMax: MAX_WINDOW_LOG})


def unxz() -> Decompressor:
    return LZMADecompressor(FORMAT_XZ, MAX_XZ_MEMORY)


def members(pieces: Iterator[bytes], new: Callable[[], Decompressor]) -> Iterator[bytes]:
    """The content of gzip members or zstd frames that follow each other, and nothing else.

    Raises `CorruptError`.
    """
    pieces = _cut(pieces)
    data = next(pieces, b"")
    while True:
        data = yield from member(data, pieces, new())
        data = data or next(pieces, b"")
        if not data:
            return


def member(
    data: bytes, pieces: Iterator[bytes], decompressor: Decompressor
) -> Generator[bytes, None, bytes]:
    """The content of one gzip member, zstd frame or xz stream: ``data``, then ``pieces``.

    Returns what comes after its end, as far as it was taken from ``pieces``, whose items should
    have `INPUT_SIZE` at most. Raises `CorruptError`.
    """
    while True:
        try:
            output = decompressor.decompress(data, OUTPUT_SIZE)
        except ERRORS as error:
            raise CorruptError(f"it cannot be decompressed: {error}") from None
        yield output
        if decompressor.eof:
            return decompressor.unused_data
        data = b""
        if decompressor.needs_input:
            data = next(pieces, b"")
            if not data:
                raise CorruptError("it is truncated: the compressed data ends too early")


def _cut(pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        for start in range(0, len(piece), INPUT_SIZE):
            yield piece[start : start + INPUT_SIZE]
