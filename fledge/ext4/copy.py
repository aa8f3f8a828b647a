"""Copies the contents of files into an image.

copy_file_range(2) would not help. The digest of the image needs the bytes in any case, and no
filesystem could share blocks with a tar, in which contents begin at multiples of 512 bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
from bisect import bisect_right
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

from fledge.errors import unreadable
from fledge.ext4.structures import BLOCK_SIZE, Extent
from fledge.host.output import Output
from fledge.tree import File
from fledge.tree.content import (
    DataExtent,
    Span,
    Sparse,
    changed,
    check_digest,
    content_size,
)
from fledge.tree.digest import Digest
from fledge.tree.regular import open_regular

MAX_OPEN = 64
"""Files that are kept open at once, of those that contents do not hold open."""


class Copier:
    """Copies contents to their extents in an image."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._sources: dict[Path, io.FileIO] = {}
        self._digests: dict[File, hashlib._Hash] = {}
        """Digests to be checked, of the part of each file that was copied so far."""

    def copy(self, file: File, extent: Extent) -> None:
        """Copy one extent of a file. The extents of a file must come in their order.

        Raises as `read_content` does, and `OSError` if the image cannot be written.
        """
        content = file.content
        offset, position = extent.logical * BLOCK_SIZE, extent.physical * BLOCK_SIZE
        length = min(extent.length * BLOCK_SIZE, content_size(content) - offset)
        if isinstance(content, bytes):
            self._output.write(content[offset : offset + length], position)
        elif isinstance(content, Sparse):
            for data in _data_in(content, offset, length):
                goal = position + data.offset - offset
                self._move(content, data.source, goal, data.length)
        elif content.digest is None:
            self._move(content, content.offset + offset, position, length)
        else:
            digest = self._digests.setdefault(file, hashlib.sha256())
            self._move(content, content.offset + offset, position, length, digest)
            if offset + length == content.size:
                check_digest(content, Digest(digest.hexdigest()))
                del self._digests[file]

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
