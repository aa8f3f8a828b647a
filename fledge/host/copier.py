"""Copies the contents of files into an image.

copy_file_range(2) would not help. The digest of the image needs the bytes in any case, and no
filesystem could share blocks with a tar, in which contents begin at multiples of 512 bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TypeGuard

from fledge.errors import unreadable
from fledge.host.output import Output
from fledge.tree import File
from fledge.tree.content import (
    Content,
    DataExtent,
    Packed,
    Span,
    Sparse,
    changed,
    check_digest,
    read_range,
    unpack_range,
)
from fledge.tree.digest import Digest
from fledge.tree.regular import open_regular

MAX_OPEN = 64
"""Files that are kept open at once, of those that contents do not hold open."""


MAX_GAP = 1 << 14
"""Bytes between two contents that are read with them, rather than to read twice."""

MAX_WINDOW = 1 << 17
"""Bytes that are read at once for several contents. More would not fit into the processor's
caches."""


class Copier:
    """Copies contents of files to their positions in an image."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._sources: dict[Path, io.FileIO] = {}
        self._digests: dict[File, hashlib._Hash] = {}
        """Digests to be checked, of the part of each file that was copied so far."""
        self._tails: dict[File, bytes] = {}
        """Ends of files that were read ahead and whose digests are still to be checked."""

    def copy(self, file: File, offset: int, length: int, position: int) -> None:
        """Copy ``length`` bytes from ``offset`` of a file to ``position`` in the image.

        The parts of a file must come in their order, and all but the holes of it must come. Raises
        as `read_content` does, and `OSError` if the image cannot be written.
        """
        content = file.content
        if isinstance(content, bytes):
            self._output.write(content[offset : offset + length], position)
        elif isinstance(content, Sparse):
            of_data = (
                self._digests.setdefault(file, hashlib.sha256()) if content.data_digest else None
            )
            for data in _data_in(content, offset, length):
                goal = position + data.offset - offset
                self._move(content, data.source, goal, data.length, of_data)
                last = content.extents[-1]
                if of_data and data.offset + data.length == last.offset + last.length:
                    del self._digests[file]
                    check_digest(content, Digest(of_data.hexdigest()))
        elif isinstance(content, Packed):
            for place, piece in unpack_range(content, offset, length):
                self._output.write(piece, position + place - offset)
        elif content.digest is None:
            self._move(content, content.offset + offset, position, length)
        else:
            digest = self._digests.setdefault(file, hashlib.sha256())
            self._move(content, content.offset + offset, position, length, digest)
            tail = self._tails.get(file, b"")
            if offset + length + len(tail) == content.size:
                self._tails.pop(file, None)
                del self._digests[file]
                digest.update(tail)
                check_digest(content, Digest(digest.hexdigest()))

    def copy_small(self, spans: Iterable[Span], position: int, unit: int) -> None:
        """Copy small contents that `is_plain`, each to the next multiple of ``unit``.

        Those that are close together in one file on disk are read at once. Raises as `copy`.
        """
        for near in _neighbours(spans):
            together = self._read_together(near, unit)
            self._output.write(together, position)
            position += len(together)

    def read_tail(self, file: File, offset: int) -> bytes:
        """Return the content of a file from ``offset`` on, which will not be copied.

        If ``offset`` is not 0, the part before it must be copied later. Raises as `copy`.
        """
        content = file.content
        if isinstance(content, bytes):
            return content[offset:]
        tail = read_range(content, offset, content.size - offset)
        if isinstance(content, Span) and content.digest:
            if offset:
                self._tails[file] = tail
            else:
                check_digest(content, Digest.of(tail))
        return tail

    def close(self) -> None:
        """Close the files from which contents were copied."""
        for source in self._sources.values():
            source.close()
        self._sources.clear()

    def _move(
        self,
        content: Span | Sparse,
        start: int,
        position: int,
        length: int,
        digest: hashlib._Hash | None = None,
    ) -> None:
        """Copy ``length`` bytes from ``start`` of the file that a content is in."""
        source = content.opened.descriptor if content.opened else self._open(content.path)
        for piece in self._output.space(position, length):
            left = piece
            while left:
                try:
                    count = os.preadv(source, [left], start)
                except OSError as error:
                    raise unreadable(content.path, error) from error
                if not count:
                    raise changed(content.path)
                start, left = start + count, left[count:]
            if digest:
                digest.update(piece)

    def _read_together(self, near: Sequence[Span], unit: int) -> bytes:
        """The contents that `_neighbours` found, each filled up with zeros to ``unit``."""
        first = near[0]
        start = first.offset
        size = max(span.offset + span.size for span in near) - start
        source = first.opened.descriptor if first.opened else self._open(first.path)
        try:
            window = os.pread(source, size, start)
        except OSError as error:
            raise unreadable(first.path, error) from error
        if len(window) < size:
            raise changed(first.path)
        contents = []
        for span in near:
            begin = span.offset - start
            content = window[begin : begin + span.size]
            contents.append(content.ljust(span.size + -span.size % unit, b"\0"))
        return b"".join(contents)

    def _open(self, path: Path) -> int:
        """The descriptor of a file that stays open."""
        source = self._sources.get(path)
        if source is None:
            if len(self._sources) == MAX_OPEN:
                self.close()
            try:
                source = self._sources[path] = open_regular(path)
            except OSError as error:
                raise unreadable(path, error) from error
        return source.fileno()


def is_plain(content: Content) -> TypeGuard[Span]:
    """Whether a content is a part of a file on disk, and has no digest to be checked."""
    return isinstance(content, Span) and content.digest is None


def _neighbours(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """Group contents that follow each other closely in one file on disk."""
    group: list[Span] = []
    start = end = 0
    for span in spans:
        after = span.offset + span.size
        if not (
            group
            and span.opened is group[0].opened
            and span.path is group[0].path
            and start <= span.offset <= end + MAX_GAP
            and after <= start + MAX_WINDOW
        ):
            if group:
                yield group
            group = []
            start, end = span.offset, after
        group.append(span)
        end = max(end, after)
    if group:
        yield group


def _data_in(content: Sparse, offset: int, length: int) -> Iterator[DataExtent]:
    """The extents of a content with holes, cut to the ``length`` bytes from ``offset`` on."""
    first = bisect_right(content.extents, offset, key=attrgetter("offset")) - 1
    for index in range(max(0, first), len(content.extents)):
        extent = content.extents[index]
        if extent.offset >= offset + length:
            return
        begin = max(extent.offset, offset)
        end = min(extent.offset + extent.length, offset + length)
        if begin < end:
            yield DataExtent(begin, extent.source + begin - extent.offset, end - begin)
