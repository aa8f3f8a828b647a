"""Copies the contents of files into an image.

copy_file_range(2) would not help. The digest of the image needs the bytes in any case, and no
filesystem could share blocks with a tar, in which contents begin at multiples of 512 bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
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
    content_size,
    read_range,
    unpack_range,
)
from fledge.tree.digest import Digest
from fledge.tree.regular import open_regular

MAX_OPEN = 64
"""Files that are kept open at once, of those that contents do not hold open."""


MAX_GAP = 1 << 14
"""Bytes between two contents that are read with them, rather than to read twice."""

MAX_WINDOW = 1 << 20
"""Bytes that are read at once for several contents."""


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

    def copy_small(self, files: Sequence[File], position: int, unit: int) -> None:
        """Copy small files to ``position``, each to the first multiple of ``unit`` after the last.

        What is close together in one file on disk is read at once. Raises as `copy`.
        """
        near: list[Span] = []
        start = end = 0
        """Where the contents in ``near`` are."""
        for file in files:
            content = file.content
            if near and not (
                _is_plain(content)
                and content.opened is near[0].opened
                and content.path == near[0].path
                and start <= content.offset <= end + MAX_GAP
                and content.offset + content.size - start <= MAX_WINDOW
            ):
                position = self._move_together(near, start, end, position, unit)
                near = []
            if _is_plain(content):
                start = start if near else content.offset
                end = max(end if near else 0, content.offset + content.size)
                near.append(content)
            else:
                size = content_size(content)
                self.copy(file, 0, size, position)
                position += size + -size % unit
        if near:
            self._move_together(near, start, end, position, unit)

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
            self._read(source, piece, start, content.path)
            start += len(piece)
            if digest:
                digest.update(piece)

    @staticmethod
    def _read(source: int, piece: memoryview, start: int, path: Path) -> None:
        """Fill a piece from ``start`` of an open file on."""
        while piece:
            try:
                count = os.preadv(source, [piece], start)
            except OSError as error:
                raise unreadable(path, error) from error
            if not count:
                raise changed(path)
            start, piece = start + count, piece[count:]

    def _move_together(
        self, contents: Sequence[Span], start: int, end: int, position: int, unit: int
    ) -> int:
        """Copy contents that are between ``start`` and ``end`` of the file that all are in.

        Returns the first multiple of ``unit`` behind them.
        """
        first = contents[0]
        source = first.opened.descriptor if first.opened else self._open(first.path)
        window = bytearray(end - start)
        self._read(source, memoryview(window), start, first.path)
        together = b"".join(
            [
                window[(at := content.offset - start) : at + content.size].ljust(
                    content.size + -content.size % unit, b"\0"
                )
                for content in contents
            ]
        )
        self._output.write(together, position)
        return position + len(together)

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


def _is_plain(content: Content) -> TypeGuard[Span]:
    """Whether a content is a part of a file whose digest need not be checked."""
    return isinstance(content, Span) and content.digest is None


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
