"""Decompresses untrusted gzip, zstd and xz data in bounded memory.

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
"""The magic numbers of zstd's skippable frames (RFC 8878 section 3.1.2). A blob may begin with
such frames."""

ERRORS: tuple[type[Exception], ...] = (
    igzip_lib.IsalError,  # type: ignore[assignment]  # the stubs take the class for an instance
    ZstdError,
    LZMAError,
)

INPUT_SIZE = 64 << 10
"""Maximum bytes of input passed to a decompressor in one call. The input left over at the end of
each member or frame is copied, so with larger pieces a blob of many empty members would take
quadratic time."""

OUTPUT_SIZE = 256 << 10
"""Maximum bytes of output taken from a decompressor in one call."""

MAX_WINDOW_LOG = 27
"""Largest window of a zstd frame, which bounds its memory: 128 MiB, the default limit of the zstd
command."""

MAX_XZ_MEMORY = 192 << 20
"""Maximum bytes of memory for an xz stream: twice the need of the xz command's largest preset."""

MAX_DECOMPRESSED_SIZE = 1 << 37
"""Maximum bytes in one decompressed layer or archive: 128 GiB, several times the largest layers
in use. It stops a decompression bomb on a machine with a large disk."""


class Decompressor(Protocol):
    """The interface that the decompressors of isal, pyzstd and lzma share."""

    @property
    def eof(self) -> bool:
        """Whether the end of the member, frame or stream was reached."""

    @property
    def needs_input(self) -> bool:
        """Whether `decompress` needs more input to produce more output."""

    @property
    def unused_data(self) -> bytes:
        """The input after the end of the member, frame or stream."""

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        """Take ``data`` and return at most ``max_length`` bytes of output."""


def gunzip() -> Decompressor:
    """Make a decompressor for one gzip member."""
    return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)


def unzstd() -> Decompressor:
    """Make a decompressor for one zstd frame."""
    return ZstdDecompressor(option={DParameter.windowLogMax: MAX_WINDOW_LOG})


def unxz() -> Decompressor:
    """Make a decompressor for one xz stream."""
    return LZMADecompressor(FORMAT_XZ, MAX_XZ_MEMORY)


def members(pieces: Iterator[bytes], new: Callable[[], Decompressor]) -> Iterator[bytes]:
    """Decompress a sequence of gzip members or zstd frames. ``new`` makes a decompressor for each.

    Raises `CorruptError` if anything but members or frames follows, or if one is damaged.
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
    """Decompress one gzip member, zstd frame or xz stream: ``data``, then ``pieces``.

    Items of ``pieces`` should have at most `INPUT_SIZE` bytes. Returns the bytes after the end
    that were already taken from ``pieces``. Raises `CorruptError` if the data is damaged or
    truncated.
    """
    while True:
        try:
            output = decompressor.decompress(data, OUTPUT_SIZE)
        except ERRORS as error:
            raise CorruptError(f"it cannot be decompressed: {error}") from error
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
