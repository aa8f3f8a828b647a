"""What a file holds, without holding it in memory."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fledge.errors import CorruptError, unreadable

READ_SIZE = 1 << 20


class Span(msgspec.Struct, frozen=True):
    """``size`` bytes from ``offset`` of a file on disk.

    With a ``sha256`` (hex) every complete read verifies it, so that what an artifact holds
    is what its inputs' digests say even if the file is written to during the build.
    ``file_sha256`` is that of the whole file, where it is known.
    """

    path: Path
    offset: int
    size: int
    sha256: str | None = None
    file_sha256: str | None = None


class Blob(Span, frozen=True):
    """A whole file whose digest is known."""

    sha256: str


@dataclass(frozen=True, slots=True)  # why: see `tree.Node`
class Sparse:
    """``size`` bytes with holes, which read as zeros, or in pieces that lie apart.

    ``file_sha256`` is as in `Span`.
    """

    size: int
    path: Path
    """The file that all data is in."""
    extents: tuple[tuple[int, int, int], ...]
    """Where the data goes, where it is in that file, and how long it is; ascending, without
    overlap."""
    file_sha256: str | None = None


Content = bytes | Span | Sparse


def content_size(content: Content) -> int:
    """Length in bytes, holes included."""
    return len(content) if isinstance(content, bytes) else content.size


def read_content(content: Content) -> Iterator[bytes]:
    """The bytes, those of a span in pieces of at most `READ_SIZE`.

    Raises `CorruptError` if the file behind a span is shorter than it was, or another;
    `FledgeError` if it cannot be read.
    """
    if isinstance(content, bytes):
        yield content
    elif isinstance(content, Sparse):
        position = 0
        for offset, piece in read_extents(content):
            yield from _zeros(offset - position)
            yield piece
            position = offset + len(piece)
        yield from _zeros(content.size - position)
    else:
        yield from _read_span(content)


def content_sha256(content: Content) -> str:
    """The digest in hex, which is only computed where it is not known. Raises as `read_content`."""
    if isinstance(content, Span) and content.sha256:
        return content.sha256
    digest = hashlib.sha256()
    for piece in read_content(content):
        digest.update(piece)
    return digest.hexdigest()


def read_extents(content: Sparse) -> Iterator[tuple[int, bytes]]:
    """What is not in a hole, in pieces of at most `READ_SIZE`, and where each goes.

    Raises as `read_content` does.
    """
    with _open(content.path) as file:
        for offset, start, length in content.extents:
            position = offset
            for piece in _pieces(file, content.path, start, length):
                yield position, piece
                position += len(piece)


def _zeros(count: int) -> Iterator[bytes]:
    block = bytes(min(count, READ_SIZE))
    while count:
        count -= len(block)
        yield block
        block = block[:count]


def _read_span(content: Span) -> Iterator[bytes]:
    digest = hashlib.sha256() if content.sha256 else None
    with _open(content.path) as file:
        for piece in _pieces(file, content.path, content.offset, content.size):
            if digest:
                digest.update(piece)
            yield piece
    if digest:
        check_sha256(content, digest.hexdigest())


def check_sha256(content: Span, actual: str) -> None:
    """Raise `CorruptError` if what was read of a content has another digest than it must have."""
    if actual != content.sha256:
        raise CorruptError(
            f"{content.path} changed while it was read, or is damaged: it has sha256"
            f" {actual}, expected {content.sha256}",
            "Build again when nothing else writes to that file; if that does not help, replace it.",
        )


@contextmanager
def _open(path: Path) -> Iterator[io.FileIO]:
    try:
        with path.open("rb", buffering=0) as file:
            yield file
    except OSError as error:
        raise unreadable(path, error) from error


def _pieces(file: io.FileIO, path: Path, offset: int, size: int) -> Iterator[bytes]:
    while size:
        piece = os.pread(file.fileno(), min(size, READ_SIZE), offset)
        if not piece:
            raise changed(path)
        offset += len(piece)
        size -= len(piece)
        yield piece


def whole_file(path: Path) -> Blob:
    """A file as it is now, with its digest."""
    digest = hashlib.sha256()
    size = 0
    for piece in read_file(path):
        digest.update(piece)
        size += len(piece)
    return Blob(path, 0, size, digest.hexdigest())


def read_file(path: Path) -> Iterator[bytes]:
    """All of a file, in pieces of at most `READ_SIZE`. Raises `OSError`."""
    with path.open("rb", buffering=0) as file:
        while piece := file.read(READ_SIZE):
            yield piece


def changed(path: Path) -> CorruptError:
    """The error of a file that is shorter than it was."""
    return CorruptError(
        f"{path} changed while it was read",
        "Build again when nothing else writes to that file.",
    )
