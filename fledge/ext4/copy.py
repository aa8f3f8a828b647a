"""Moves the contents of files into an image, inside the kernel where it can."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fledge.content import READ_SIZE, Content, Span, Sparse, changed, read_content
from fledge.errors import unreadable
from fledge.ext4.structures import BLOCK_SIZE, Extent
from fledge.files import pwrite

MAX_OPEN = 64
"""Files that are kept open at once: an image has rarely more layers."""

UNSUPPORTED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
"""How copy_file_range(2) says that it cannot copy between these files."""

ZEROS = bytes(READ_SIZE)
"""What need not be written into a new image."""

Part = tuple[int, int, int]
"""Where data is, where it goes, and how long it is, in bytes."""


class Copier:
    """Copies contents to their extents in the image open as ``target``."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._sources: dict[Path, int] = {}
        self._in_kernel = hasattr(os, "copy_file_range")

    def copy(self, content: Content, extents: Sequence[Extent]) -> None:
        """Holes and what follows the end in the last block stay as they are.

        Raises as `read_content` does, and `OSError` if the image cannot be written.
        """
        if isinstance(content, bytes) or (isinstance(content, Span) and content.sha256):
            position = 0
            for piece in read_content(content):
                if piece != ZEROS[: len(piece)]:
                    view = memoryview(piece)
                    for start, goal, length in _parts([(position, 0, len(piece))], extents):
                        pwrite(self._target, view[start : start + length], goal)
                position += len(piece)
            return
        if isinstance(content, Sparse):
            pieces: Iterable[Part] = content.extents
        else:
            pieces = [(0, content.offset, content.size)]
        with _explained(content.path):
            source = self._open(content.path)
        for start, goal, length in _parts(pieces, extents):
            self._move(content.path, source, start, goal, length)

    def close(self) -> None:
        """Close the files that contents came from."""
        for source in self._sources.values():
            os.close(source)
        self._sources.clear()

    def _open(self, path: Path) -> int:
        if path not in self._sources:
            if len(self._sources) == MAX_OPEN:
                self.close()
            self._sources[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._sources[path]

    def _move(self, path: Path, source: int, start: int, goal: int, length: int) -> None:
        while length:
            done = self._copy_file_range(source, start, goal, length)
            if not done:
                with _explained(path):
                    piece = os.pread(source, min(length, READ_SIZE), start)
                if not piece:
                    raise changed(path)
                pwrite(self._target, piece, goal)
                done = len(piece)
            start, goal, length = start + done, goal + done, length - done

    def _copy_file_range(self, source: int, start: int, goal: int, length: int) -> int:
        """Bytes that the kernel has copied: 0 if it cannot, or not any more."""
        if not self._in_kernel:
            return 0
        try:
            return os.copy_file_range(source, self._target, length, start, goal)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            self._in_kernel = False
            return 0


def _parts(pieces: Iterable[Part], extents: Sequence[Extent]) -> Iterator[Part]:
    """What of the pieces (offset in the file, where it is, length) goes where in the image.

    Both are in the order of the file; every byte of a piece is in an extent.
    """
    remaining = iter(extents)
    shift = extent_end = 0
    for offset, start, length in pieces:
        done = 0
        while done < length:
            position = offset + done
            while position >= extent_end:
                logical, physical, blocks = next(remaining)
                shift = (physical - logical) * BLOCK_SIZE
                extent_end = (logical + blocks) * BLOCK_SIZE
            count = min(length - done, extent_end - position)
            yield start + done, position + shift, count
            done += count


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unreadable(path, error) from error
