"""Decompresses untrusted gzip, zstd, xz, lzma, lz4 and bzip2 data in bounded memory.

RFC 1952 (gzip), RFC 8878 (zstd), the .xz and .lzma file formats of tukaani.org, the legacy frame of
lz4_Frame_format.md, and bzip2, which has no specification but its program.
"""

from __future__ import annotations

import re
import threading
from bz2 import BZ2Decompressor
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from lzma import FORMAT_ALONE, FORMAT_XZ, LZMADecompressor, LZMAError
from typing import Protocol

import lz4.block
from isal import igzip_lib
from pyzstd import DParameter, ZstdDecompressor, ZstdError

from fledge.errors import CorruptError
from fledge.report import human_size

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
XZ_MAGIC = b"\xfd7zXZ\0"
LZ4_MAGIC = b"\x02!L\x18"
"""The magic number of a legacy frame, which is the one that Linux takes."""
SKIPPABLE_MAGIC = tuple(bytes([0x50 + n, 0x2A, 0x4D, 0x18]) for n in range(16))
"""The magic numbers of zstd's skippable frames (RFC 8878 section 3.1.2). A blob may begin with
such frames."""
BZIP2_START = re.compile(rb"BZh[1-9](?:1AY&SY|\x17\x72\x45\x38\x50\x90)")
"""A stream's header, and the magic number of its first block or of its end. The header alone could
be the name of a tar's first entry."""
LZMA_START = re.compile(rb"\]\0\0(?!\0\0)")
"""The usual properties and part of a size, in a format that has no magic number. Behind a tar's
first name there would be zeros."""
UNSUPPORTED = {
    b"\x02!L\x18": "lz4",
    b'\x04"M\x18': "lz4",
    b"\x1f\x9d": "compress",
    b"\x89LZO": "lzop",
    b"LZIP\1": "lzip",
    b"PK\3\4": "zip",
}
"""Magic numbers of what fledge does not read, and the programs that write it."""

MAX_START = 18
"""Bytes that tell what data is: the largest header of a zstd frame (RFC 8878 section 3.1.1)."""

ERRORS: tuple[type[Exception], ...] = (
    igzip_lib.IsalError,  # type: ignore[assignment]  # the stubs take the class for an instance
    ZstdError,
    LZMAError,
    OSError,  # bz2's, for damaged data
)

INPUT_SIZE = 64 << 10
"""Maximum bytes of input passed to a decompressor in one call. The input left over at the end of
each member or frame is copied, so with larger pieces a blob of many empty members would take
quadratic time."""

OUTPUT_SIZE = 256 << 10
"""Maximum bytes of output taken from a decompressor in one call."""

MAX_WINDOW_LOG = 27
"""Largest window of a zstd frame, as a power of 2: 128 MiB, the default limit of the zstd command.
The window is how much memory the frame takes."""

MAX_XZ_MEMORY = 96 << 20
"""Maximum bytes of memory for an xz stream: the xz command's largest preset needs 65 MiB."""

MAX_MEMORY = 1 << MAX_WINDOW_LOG
"""Maximum bytes of memory that the zstd frames and xz streams of all threads take together."""

LZ4_BLOCK_SIZE = 8 << 20
"""Maximum bytes in an uncompressed block of a legacy lz4 frame."""

SMALLER_WINDOW = "It is not damaged: compress it again with a smaller window or dictionary."

MAX_DECOMPRESSED_SIZE = 1 << 37
"""Maximum bytes in one decompressed layer or archive: 128 GiB, several times the largest layers
in use. It stops a decompression bomb on a machine with a large disk."""


class _Memory:
    """Memory that threads share. A thread waits until there is as much as it needs."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Take ``size`` bytes for the time of the context."""
        with self._changed:
            self._changed.wait_for(lambda: size <= self._left)
            self._left -= size
        try:
            yield
        finally:
            with self._changed:
                self._left += size
                self._changed.notify_all()


_memory = _Memory(MAX_MEMORY)


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
    """Make a decompressor for one gzip member.

    rapidgzip inflates on several cores, but takes twice the processor time of isal and hundreds of
    megabytes of memory for one layer, so that two cores gain nothing.
    """
    return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)


def unzstd() -> Decompressor:
    """Make a decompressor for one zstd frame."""
    return ZstdDecompressor(option={DParameter.windowLogMax: MAX_WINDOW_LOG})


def unxz() -> Decompressor:
    """Make a decompressor for one xz stream."""
    return LZMADecompressor(FORMAT_XZ, MAX_XZ_MEMORY)


def unlzma() -> Decompressor:
    """Make a decompressor for one lzma stream."""
    return LZMADecompressor(FORMAT_ALONE, MAX_XZ_MEMORY)


def unbzip2() -> Decompressor:
    """Make a decompressor for one bzip2 stream."""
    return BZ2Decompressor()


def lz4_blocks(data: bytes, pieces: Iterator[bytes]) -> Generator[bytes, None, bytes]:
    """Decompress a sequence of legacy lz4 frames: ``data``, then ``pieces``.

    Only the end of the data, or a zero where the size of a block should be, ends it. The last 4
    bytes may be the size of it all, which the build of a kernel appends. Returns the bytes after
    the end that were already taken from ``pieces``. Raises `CorruptError` if a block is damaged or
    truncated.
    """
    most = LZ4_BLOCK_SIZE + LZ4_BLOCK_SIZE // 255 + 16
    taken = bytearray(data)

    def fill(size: int) -> bool:
        while len(taken) < size and (piece := next(pieces, b"")):
            taken.extend(piece)
        return len(taken) >= size

    while fill(4):
        if taken.startswith(LZ4_MAGIC):
            del taken[:4]
            continue
        size = int.from_bytes(taken[:4], "little")
        if size == 0 or (size > most and not fill(5)):
            return bytes(taken) if size == 0 else b""
        if size > most or not fill(4 + size):
            raise CorruptError("it is truncated or damaged: an lz4 block is too long")
        try:
            block = lz4.block.decompress(bytes(taken[4 : 4 + size]), LZ4_BLOCK_SIZE)
        except (lz4.block.LZ4BlockError, ValueError) as error:
            raise CorruptError(f"it cannot be decompressed: {error}") from error
        del taken[: 4 + size]
        yield block
    if taken.strip(b"\0"):
        raise CorruptError("it is truncated: the compressed data ends too early")
    return bytes(taken)


def find_decompression(start: bytes) -> Callable[[Iterator[bytes]], Iterator[bytes]] | None:
    """Return what decompresses data that begins with ``start``; None if it is not compressed.

    `MAX_START` bytes are enough. The function takes and yields pieces, and raises `CorruptError`
    if the data is damaged, needs too much memory, or is in a format that fledge does not read.
    """
    if start.startswith(GZIP_MAGIC):
        return partial(members, new=gunzip)
    if start.startswith((ZSTD_MAGIC, *SKIPPABLE_MAGIC)):
        return zstd_frames
    if start.startswith(XZ_MAGIC):
        # Zeros may follow a stream, to align the next (The .xz File Format, section 2.2).
        return partial(members, new=unxz, padding=b"\0", memory=MAX_XZ_MEMORY)
    if BZIP2_START.match(start):
        return partial(members, new=unbzip2)
    programs = (name for magic, name in UNSUPPORTED.items() if start.startswith(magic))
    program = "lzma" if LZMA_START.match(start) else next(programs, None)
    return partial(_refused, program=program) if program else None


def _refused(pieces: Iterator[bytes], program: str) -> Iterator[bytes]:
    raise CorruptError(
        f"it is compressed by {program}, which fledge does not read",
        "It is not damaged: compress it again by gzip, zstd, xz or bzip2.",
    )


def members(
    pieces: Iterator[bytes],
    new: Callable[[], Decompressor],
    padding: bytes = b"",
    memory: int = 0,
) -> Iterator[bytes]:
    """Decompress a sequence of gzip members, or of xz or bzip2 streams.

    ``new`` makes a decompressor for each. ``padding`` has the bytes to skip behind each,
    ``memory`` says how much each takes of `MAX_MEMORY`. Raises `CorruptError` if anything else
    follows, or if one is damaged.
    """
    pieces = _cut(pieces)
    data = next(pieces, b"")
    while True:
        with _memory.taken(memory):
            data = yield from member(data, pieces, new())
        data = data.lstrip(padding) if padding else data
        while not data:
            piece = next(pieces, b"")
            if not piece:
                return
            data = piece.lstrip(padding) if padding else piece


def zstd_frames(pieces: Iterator[bytes]) -> Generator[bytes, None, None]:
    """Decompress a sequence of zstd frames.

    Raises `CorruptError` if anything but frames follows, if one is damaged, or if its window is
    too large.
    """
    pieces = _cut(pieces)
    data = next(pieces, b"")
    while True:
        while len(data) < MAX_START and (piece := next(pieces, b"")):
            data += piece
        window = zstd_window(data)
        if window > 1 << MAX_WINDOW_LOG:
            raise CorruptError(
                f"it is compressed by zstd with a window of {human_size(window)}, and fledge takes"
                f" at most {human_size(1 << MAX_WINDOW_LOG)}",
                SMALLER_WINDOW,
            )
        with _memory.taken(window):
            data = yield from member(data, pieces, unzstd())
        data = data or next(pieces, b"")
        if not data:
            return


def zstd_window(frame: bytes) -> int:
    """Return the size of a frame's window (RFC 8878 section 3.1.1.1); 0 if it has no whole header.

    A skippable frame has no window.
    """
    if not frame.startswith(ZSTD_MAGIC) or len(frame) < 6:
        return 0
    flags = frame[4]
    if not flags & 0x20:
        exponent, mantissa = divmod(frame[5], 8)
        return (8 + mantissa) << (7 + exponent)
    # A single segment: the window is as large as the content.
    begin = 5 + (0, 1, 2, 4)[flags & 3]
    size = (1, 2, 4, 8)[flags >> 6]
    return int.from_bytes(frame[begin : begin + size], "little") + (256 if size == 2 else 0)


def member(
    data: bytes, pieces: Iterator[bytes], decompressor: Decompressor
) -> Generator[bytes, None, bytes]:
    """Decompress one gzip member, zstd frame, xz or bzip2 stream: ``data``, then ``pieces``.

    Items of ``pieces`` should have at most `INPUT_SIZE` bytes. Returns the bytes after the end
    that were already taken from ``pieces``. Raises `CorruptError` if the data is damaged or
    truncated.
    """
    while True:
        try:
            output = decompressor.decompress(data, OUTPUT_SIZE)
        except ERRORS as error:
            # The words of liblzma and zstd for a dictionary or a window that is too large.
            hint = SMALLER_WINDOW if "memory" in str(error).lower() else ""
            raise CorruptError(f"it cannot be decompressed: {error}", hint) from error
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
