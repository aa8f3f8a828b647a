"""What a file holds, without holding it in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fledge.errors import CorruptError, FledgeError, reason

READ_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class Span:
    """``size`` bytes from ``offset`` of a file on disk.

    With a ``sha256`` (hex) every complete read verifies it, so that what an artifact holds
    is what its inputs' digests say even if the file is written to during the build.
    """

    path: Path
    offset: int
    size: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Blob(Span):
    """A whole file whose digest is known."""

    sha256: str


@dataclass(frozen=True, slots=True)
class Sparse:
    """A file of ``size`` bytes with holes, which read as zeros."""

    size: int
    data: Span
    """What is not a hole, back to back."""
    extents: tuple[tuple[int, int], ...]
    """Where the data goes: offset in the file and length, ascending, without overlap."""


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
        yield from _read_sparse(content)
    else:
        yield from _read_span(content)


def _read_sparse(content: Sparse) -> Iterator[bytes]:
    position = 0
    start = content.data.offset
    for offset, length in content.extents:
        yield from _zeros(offset - position)
        yield from _read_span(Span(content.data.path, start, length))
        position = offset + length
        start += length
    yield from _zeros(content.size - position)


def _zeros(count: int) -> Iterator[bytes]:
    block = bytes(min(count, READ_SIZE))
    while count:
        count -= len(block)
        yield block
        block = block[:count]


def _read_span(content: Span) -> Iterator[bytes]:
    digest = hashlib.sha256() if content.sha256 else None
    left = content.size
    try:
        with content.path.open("rb", buffering=0) as file:
            file.seek(content.offset)
            while left:
                piece = file.read(min(left, READ_SIZE))
                if not piece:
                    raise _changed(content.path)
                left -= len(piece)
                if digest:
                    digest.update(piece)
                yield piece
    except OSError as error:
        raise FledgeError(f"{content.path} could not be read: {reason(error)}") from error
    if digest and digest.hexdigest() != content.sha256:
        raise CorruptError(
            f"{content.path} changed while it was read, or is damaged: it has sha256"
            f" {digest.hexdigest()}, expected {content.sha256}",
            "Build again when nothing else writes to that file; if that does not help, replace it.",
        )


def whole_file(path: Path) -> Blob:
    """A file as it is now, with its digest."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(READ_SIZE):
            digest.update(piece)
            size += len(piece)
    return Blob(path, 0, size, digest.hexdigest())


def _changed(path: Path) -> CorruptError:
    return CorruptError(
        f"{path} changed while it was read",
        "Build again when nothing else writes to that file.",
    )
