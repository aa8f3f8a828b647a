"""The contents of files, as bytes in memory or as parts of files on disk."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from threading import Event, local
from typing import NamedTuple, TypeGuard

import msgspec

from fledge.errors import CorruptError, unreadable
from fledge.report import Transfer
from fledge.tree.digest import Digest
from fledge.tree.regular import open_regular

READ_SIZE = 1 << 20
"""Maximum bytes in one piece of a content."""

HASH_SIZE = 4 << 20
"""Bytes that are read and hashed at once. The pieces are large because a thread waits for the
interpreter's lock after each one."""

HOLE_SIZE = 1 << 16
"""Bytes of zeros in a file, beginning at a multiple of it, that become a hole."""

PREFIX_SIZE = 4096
"""Bytes of a piece that tell of most pieces that they are no zeros."""

_ZEROS = memoryview(bytes(HASH_SIZE))


class OpenFile:
    """A file that is open for reading as long as this object lives.

    Whatever comes to its path meanwhile, all contents that hold this object are of this one file.
    """

    __slots__ = ("descriptor",)

    def __init__(self, descriptor: int) -> None:
        """``descriptor`` will be closed by this object."""
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


class Span(msgspec.Struct, frozen=True):
    """``size`` bytes at ``offset`` of a file on disk.

    If ``digest`` is set, every complete read verifies the bytes: an artifact matches the digests
    of its inputs even if somebody writes to the file during the build. ``file_digest`` is the
    digest of the whole file; None if it is unknown. ``opened`` is the file itself; if it is None,
    every read opens the file at ``path``.
    """

    path: Path
    offset: int
    size: int
    digest: Digest | None = None
    file_digest: Digest | None = None
    opened: OpenFile | None = None


class Blob(Span, frozen=True):
    """A whole file whose digest is known."""

    digest: Digest


class DataExtent(NamedTuple):
    """A run of data in a `Sparse`. All numbers are in bytes."""

    offset: int
    """Where it is in the content."""
    source: int
    """Where it is in the file that all data is in."""
    length: int


@dataclass(frozen=True, slots=True)  # why: see `tree.Node`
class Sparse:
    """``size`` bytes of which some are stored in a file; the rest are holes, which read as zeros.

    If ``data_digest`` is set, it is the digest of all data without the holes, and every complete
    read verifies it. ``file_digest`` and ``opened`` are as in `Span`.
    """

    size: int
    path: Path
    """The file that all data is in."""
    extents: tuple[DataExtent, ...]
    """All data, in the order of its offsets and without overlap."""
    file_digest: Digest | None = None
    opened: OpenFile | None = None
    data_digest: Digest | None = None


@dataclass(frozen=True, slots=True)
class Packed:
    """``size`` bytes of which those that are no holes are unpacked whenever they are read.

    They come from an artifact that stores them compressed, and are nowhere in one piece.
    """

    size: int
    path: Path
    """The artifact."""
    unpack: Callable[[int, int], Iterator[tuple[int, bytes]]]
    """Yields the data of which some is between a begin and an end, as (offset in the content, at
    most `READ_SIZE` bytes), in the order of offsets. Raises as `read_content`."""


Content = bytes | Span | Sparse | Packed


def content_size(content: Content) -> int:
    """Return the length of a content in bytes, holes included."""
    return len(content) if isinstance(content, bytes) else content.size


def read_content(content: Content) -> Iterator[bytes]:
    """Yield the bytes of a content; those of a file in pieces of at most `READ_SIZE`.

    Raises `CorruptError` if the file is shorter than it was or its bytes have another digest,
    `FledgeError` if it cannot be read.
    """
    if isinstance(content, bytes):
        yield content
    elif isinstance(content, Sparse | Packed):
        position = 0
        for offset, piece in read_extents(content):
            yield from _zeros(offset - position)
            yield piece
            position = offset + len(piece)
        yield from _zeros(content.size - position)
    else:
        yield from _read_span(content)


def read_range(content: Content, offset: int, size: int) -> bytes:
    """Return at most ``size`` bytes of a content from ``offset`` on; fewer at its end.

    The digest is not checked. Raises `FledgeError` if the file cannot be read.
    """
    size = max(0, min(size, content_size(content) - offset))
    if isinstance(content, bytes):
        return content[offset : offset + size]
    if isinstance(content, Packed):
        unpacked = bytearray(size)
        for position, piece in unpack_range(content, offset, size):
            unpacked[position - offset : position - offset + len(piece)] = piece
        return bytes(unpacked)
    if isinstance(content, Span):
        extents: tuple[DataExtent, ...] = (DataExtent(0, content.offset, content.size),)
    else:
        extents = content.extents
    found = bytearray(size)
    with open_content(content) as file:
        for extent in extents:
            start = max(extent.offset, offset)
            end = min(extent.offset + extent.length, offset + size)
            if start < end:
                source = extent.source + start - extent.offset
                piece = b"".join(_pieces(file, content.path, source, end - start))
                found[start - offset : end - offset] = piece
    return bytes(found)


def content_digest(content: Content) -> Digest:
    """Return the digest of a content, and read it only if the digest is not known yet.

    Raises the errors of `read_content`.
    """
    if isinstance(content, Span) and content.digest:
        return content.digest
    if _is_small(content):
        # Most files are small. To set up the reading in pieces takes longer than to hash them.
        return Digest(hashlib.sha256(_read_small(content)).hexdigest())
    sha256 = hashlib.sha256()
    for piece in read_content(content):
        sha256.update(piece)
    return Digest(sha256.hexdigest())


def equal_contents(one: Content, other: Content) -> bool:
    """Return whether two contents are equal, without hashing them.

    Holes equal zeros, but data that comes in other pieces may count as different: False says
    nothing. Stops at the first difference. Raises the errors of `read_content`.
    """
    if content_size(one) != content_size(other):
        return False
    if content_size(one) == 0:
        return True
    if _is_small(one) and _is_small(other):
        return _read_small(one) == _read_small(other)
    return all(a == b for a, b in zip_longest(_located(one), _located(other)))


def _located(content: Content) -> Iterator[tuple[int, bytes]]:
    """Yield the data of a content as `read_extents` does."""
    if isinstance(content, Sparse | Packed):
        yield from read_extents(content)
        return
    position = 0
    for piece in read_content(content):
        yield position, piece
        position += len(piece)


def unpack_range(content: Packed, offset: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield the data outside the holes in ``size`` bytes from ``offset`` on, as `read_extents`."""
    for position, piece in content.unpack(offset, offset + size):
        begin = max(offset - position, 0)
        part = piece[begin : offset + size - position]
        if part:
            yield position + begin, part


def read_extents(content: Sparse | Packed) -> Iterator[tuple[int, bytes]]:
    """Yield the data outside the holes: (offset in the content, at most `READ_SIZE` bytes).

    Raises the errors of `read_content`.
    """
    if isinstance(content, Packed):
        yield from content.unpack(0, content.size)
        return
    sha256 = hashlib.sha256() if content.data_digest else None
    with open_content(content) as file:
        for extent in content.extents:
            position = extent.offset
            for piece in _pieces(file, content.path, extent.source, extent.length):
                if sha256:
                    sha256.update(piece)
                yield position, piece
                position += len(piece)
    if sha256:
        check_digest(content, Digest(sha256.hexdigest()))


def _is_small(content: Content) -> TypeGuard[Span]:
    """Return whether a content is one piece of an open file whose bytes need no check."""
    return (
        isinstance(content, Span)
        and content.size <= READ_SIZE
        and content.opened is not None
        and content.digest is None
    )


def _read_small(content: Span) -> bytes:
    """Read what `_is_small` accepts. Raises the errors of `read_content`."""
    with open_content(content) as file:
        data = os.pread(file, content.size, content.offset)
        if len(data) < content.size:
            data += b"".join(
                _pieces(file, content.path, content.offset + len(data), content.size - len(data))
            )
    return data


def _zeros(count: int) -> Iterator[bytes]:
    block = bytes(min(count, READ_SIZE))
    while count:
        count -= len(block)
        yield block
        block = block[:count]


def _read_span(content: Span) -> Iterator[bytes]:
    sha256 = hashlib.sha256() if content.digest else None
    with open_content(content) as file:
        for piece in _pieces(file, content.path, content.offset, content.size):
            if sha256:
                sha256.update(piece)
            yield piece
    if sha256:
        check_digest(content, Digest(sha256.hexdigest()))


def check_digest(content: Span | Sparse, actual: Digest) -> None:
    """Raise `CorruptError` if ``content`` has a digest and ``actual``, of what was read of it, is a
    different one.
    """
    expected = content.data_digest if isinstance(content, Sparse) else content.digest
    if expected and actual != expected:
        raise CorruptError(
            f"{content.path} changed while it was read, or is damaged: it has sha256"
            f" {actual.hex}, expected {expected.hex}",
            "Build again when nothing else writes to that file; if that does not help, replace it.",
        )


@contextmanager
def open_content(content: Span | Sparse) -> Iterator[int]:
    """Yield a descriptor of the file that a content is in, to read at positions only.

    An `OSError` in the block becomes the `FledgeError` that the file cannot be read.
    """
    try:
        if content.opened:
            yield content.opened.descriptor
        else:
            with open_regular(content.path) as file:
                yield file.fileno()
    except OSError as error:
        raise unreadable(content.path, error) from error


def _pieces(file: int, path: Path, offset: int, size: int) -> Iterator[bytes]:
    while size:
        piece = os.pread(file, min(size, READ_SIZE), offset)
        if not piece:
            raise changed(path)
        offset += len(piece)
        size -= len(piece)
        yield piece


def hash_file(path: Path, stop: Event | None = None, progress: Transfer | None = None) -> Blob:
    """Hash a whole file. ``progress`` is told the bytes.

    Setting ``stop`` ends the reading early; the blob then covers only the part that was read.
    Raises `OSError`; the file must be regular.
    """
    sha256 = hashlib.sha256()
    with open_regular(path) as file:
        size = update_hash(sha256, file, stop, progress)
    return Blob(path, 0, size, Digest(sha256.hexdigest()))


def scan_file(path: Path) -> tuple[Blob, Content]:
    """Hash a whole file, and return it as a content in which zeros of `HOLE_SIZE` are holes.

    Whether the file has holes on this machine makes no difference. Raises `OSError`; the file must
    be regular.
    """
    sha256 = hashlib.sha256()
    data = None  # as long as there is no hole, it would be the same
    extents: list[DataExtent] = []
    position = 0
    with open_regular(path) as file:
        for piece in _read_pieces(file):
            runs = list(_data_runs(piece))
            if data is None and sum(end - start for start, end in runs) < len(piece):
                data = sha256.copy()
            sha256.update(piece)
            for start, end in runs:
                if data:
                    data.update(piece[start:end])
                begin, length = position + start, end - start
                if extents and extents[-1].offset + extents[-1].length == begin:
                    last = extents.pop()
                    begin, length = last.offset, last.length + length
                extents.append(DataExtent(begin, begin, length))
            position += len(piece)
    blob = Blob(path, 0, position, Digest(sha256.hexdigest()))
    if data is None:
        return blob, blob
    found, of_data = tuple(extents), Digest(data.hexdigest())
    return blob, Sparse(position, path, found, file_digest=blob.digest, data_digest=of_data)


def _data_runs(piece: memoryview) -> Iterator[tuple[int, int]]:
    """Yield the begin and end of each part of `HOLE_SIZE` bytes that is not all zeros."""
    if piece is _ZEROS:
        return
    for start in range(0, len(piece), HOLE_SIZE):
        part = piece[start : start + HOLE_SIZE]
        if not is_zero(part):
            yield start, start + len(part)


def is_zero(data: memoryview) -> bool:
    """Return whether all bytes of at most `HASH_SIZE` are zeros."""
    # Views are compared byte by byte, which is slow: compare only the first bytes that way.
    start = data[:PREFIX_SIZE]
    return start == _ZEROS[: len(start)] and bytes(data) == bytes(len(data))


class _Buffer(local):
    """A read buffer for each thread, so that it is not allocated again for each file."""

    def __init__(self) -> None:
        self.memory = memoryview(bytearray(HASH_SIZE))


_buffer = _Buffer()


def update_hash(
    sha256: hashlib._Hash,
    file: io.FileIO,
    stop: Event | None = None,
    progress: Transfer | None = None,
) -> int:
    """Hash an open file from its position to its end, or until ``stop`` is set.

    Returns the number of bytes hashed, and tells ``progress`` of them. Raises `OSError`.
    """
    total = 0
    pieces = _read_pieces(file)
    while not (stop and stop.is_set()) and (piece := next(pieces, None)):
        sha256.update(piece)
        total += len(piece)
        if progress:
            progress.advance(len(piece))
    return total


def _read_pieces(file: io.FileIO) -> Iterator[memoryview]:
    """Yield the bytes of a file from its position on, each piece until the next one is asked for.

    Holes are not read: they are pieces, too, all of them `_ZEROS`.
    """
    buffer = _buffer.memory
    while True:
        if _is_hole(file):
            file.seek(HASH_SIZE, os.SEEK_CUR)
            yield _ZEROS
        elif count := file.readinto(buffer):
            yield buffer[:count]
        else:
            return


def _is_hole(file: io.FileIO) -> bool:
    """Return whether the next `HASH_SIZE` bytes of a file are a hole."""
    position = file.tell()
    try:
        data = file.seek(position, os.SEEK_DATA)
    except OSError as error:
        # ENXIO: no data follows. Any other error: the filesystem does not know about holes.
        data = file.seek(0, os.SEEK_END) if error.errno == errno.ENXIO else position
    file.seek(position)
    return data - position >= HASH_SIZE


def is_intact(blob: Blob, stop: Event | None = None) -> bool:
    """Read a whole blob, and return whether it has its digest.

    Setting ``stop`` ends the reading early, and it counts as damaged. Raises `FledgeError`.
    """
    sha256 = hashlib.sha256()
    for piece in read_blob(blob, stop):
        sha256.update(piece)
    return sha256.hexdigest() == blob.digest.hex


def read_blob(blob: Blob, stop: Event | None = None) -> Iterator[memoryview]:
    """Yield the bytes of the file of a blob, each piece until the next one is asked for.

    The digest is not checked. Setting ``stop`` ends the reading early. Raises `FledgeError`.
    """
    buffer = _buffer.memory
    position = 0
    with open_content(blob) as file:
        while not (stop and stop.is_set()) and (count := os.preadv(file, [buffer], position)):
            yield buffer[:count]
            position += count


def changed(path: Path) -> CorruptError:
    """Return the error for a file that became shorter while it was read."""
    return CorruptError(
        f"{path} changed while it was read",
        "Build again when nothing else writes to that file.",
    )
