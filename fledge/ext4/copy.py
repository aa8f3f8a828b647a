"""Moves the contents of files into an image.

Not with copy_file_range(2), for the digest needs the bytes in any case; and since contents in a
tar begin at multiples of 512 bytes, no filesystem could share their blocks instead.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice
from operator import itemgetter
from pathlib import Path

from fledge.errors import unreadable
from fledge.ext4.structures import BLOCK_SIZE, Extent
from fledge.host.output import Output
from fledge.tree import File
from fledge.tree.content import Sparse, changed, check_sha256, content_size

MAX_OPEN = 64
"""Files that are kept open at once: an image has rarely more layers."""


class Copier:
    """Copies contents to their extents in an image."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._sources: dict[Path, int] = {}
        self._digests: dict[File, hashlib._Hash] = {}
        """Of what is copied so far of the files whose digest is to be checked."""

    def copy(self, file: File, extent: Extent) -> None:
        """Copy what an extent has of a file; those of one file in their order.

        Raises as `read_content` does, and `OSError` if the image cannot be written.
        """
        content = file.content
        offset, position = extent.logical * BLOCK_SIZE, extent.physical * BLOCK_SIZE
        length = min(extent.length * BLOCK_SIZE, content_size(content) - offset)
        if isinstance(content, bytes):
            self._output.write(content[offset : offset + length], position)
        elif isinstance(content, Sparse):
            for start, source, count in _data_in(content, offset, length):
                self._move(content.path, source, position + start - offset, count)
        elif content.sha256 is None:
            self._move(content.path, content.offset + offset, position, length)
        else:
            digest = self._digests.setdefault(file, hashlib.sha256())
            self._move(content.path, content.offset + offset, position, length, digest)
            if offset + length == content.size:
                check_sha256(content, digest.hexdigest())
                del self._digests[file]

    def close(self) -> None:
        """Close the files that contents came from."""
        for source in self._sources.values():
            os.close(source)
        self._sources.clear()

    def _move(
        self,
        path: Path,
        start: int,
        position: int,
        length: int,
        digest: hashlib._Hash | None = None,
    ) -> None:
        """Copy ``length`` bytes of a file from ``start`` on to ``position`` in the image."""
        source = self._open(path)
        for piece in self._output.space(position, length):
            left = piece
            while left:
                try:
                    count = os.preadv(source, [left], start)
                except OSError as error:
                    raise unreadable(path, error) from error
                if not count:
                    raise changed(path)
                start, left = start + count, left[count:]
            if digest:
                digest.update(piece)

    def _open(self, path: Path) -> int:
        source = self._sources.get(path)
        if source is None:
            if len(self._sources) == MAX_OPEN:
                self.close()
            try:
                source = self._sources[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise unreadable(path, error) from error
        return source


def _data_in(content: Sparse, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """The extents of a `Sparse`, as far as they lie in that range of it."""
    first = bisect_right(content.extents, offset, key=itemgetter(0)) - 1
    for start, source, count in islice(content.extents, max(0, first), None):
        begin, end = max(start, offset), min(start + count, offset + length)
        if start >= offset + length:
            return
        if begin < end:
            yield begin, source + begin - start, end - begin
