"""Writes a file once, from front to back, while other threads hash and store the data."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from mmap import mmap

import msgspec

from fledge.host.files import pwrite
from fledge.report import Transfer
from fledge.tree.content import is_zero, update_hash
from fledge.tree.digest import Digest

BUFFER_SIZE = 4 << 20
"""Bytes in one buffer. Buffers are large because a thread waits for the interpreter's lock after
each one (sys.getswitchinterval)."""

BUFFERS = 3
"""One buffer to fill, one to hash, one to write."""

MIN_HOLE = 1 << 16
"""The shortest run of zeros, in bytes, that is left out as a hole: a hole costs another write."""

ALIGNMENT = 4096
"""Positions, sizes and addresses of O_DIRECT writes are multiples of it, in bytes. It suits all
common disks."""

ZEROS = memoryview(bytes(BUFFER_SIZE))


class Hasher:
    """A thread that computes the SHA-256 digest of the data passed to it, in order."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)
        self._stop = threading.Event()

    def close(self) -> None:
        """Stop the thread and drop the data that it has not hashed yet."""
        self._stop.set()
        self._thread.shutdown(cancel_futures=True)

    def update(self, data: bytes | memoryview) -> Future[None]:
        """Add ``data``, which must not change until the returned future is done."""
        return self._thread.submit(self._sha256.update, data)

    def update_zeros(self, count: int) -> None:
        """Add ``count`` bytes of zeros."""
        self._thread.submit(self._hash_zeros, count)

    def update_file(self, file: io.BufferedRandom, progress: Transfer | None = None) -> None:
        """Add a whole open file and wait until it is read. Raises `OSError`."""
        progress = progress or Transfer()
        progress.restart(0, os.fstat(file.fileno()).st_size)
        file.seek(0)
        with io.FileIO(file.fileno(), closefd=False) as raw:
            self._thread.submit(update_hash, self._sha256, raw, self._stop, progress).result()

    def digest(self) -> Digest:
        """Wait until all data so far is hashed and return its digest."""
        return Digest(self._thread.submit(self._sha256.hexdigest).result())

    def _hash_zeros(self, count: int) -> None:
        while count and not self._stop.is_set():
            self._sha256.update(ZEROS[:count])
            count -= min(count, BUFFER_SIZE)


class _Buffer(msgspec.Struct):
    memory: memoryview
    writing: Future[None] | None = None
    hashing: Future[None] | None = None


class Output:
    """Fills buffers in order while earlier ones are hashed and written by other threads.

    hashlib and the kernel release the interpreter's lock, so this uses cores that would be idle.
    Where the filesystem supports O_DIRECT, data bypasses the page cache: little is left to sync
    at the end, and the cached data of other programs stays. Bytes that are never written are
    zeros; long runs of zeros become holes.
    """

    def __init__(
        self, descriptor: int, hasher: Hasher | None = None, progress: Transfer | None = None
    ) -> None:
        """``descriptor``: an empty file open for writing. ``hasher`` receives everything written.

        Without a hasher (None) nothing is hashed. ``progress`` is told the bytes, holes included.
        """
        self._progress = progress or Transfer()
        self._reported = 0
        """The position up to which ``progress`` has been told."""
        self._file = descriptor
        self._hasher = hasher
        self._direct = _set_direct(descriptor, True)
        self._thread = ThreadPoolExecutor(1)
        self._buffers = deque(_Buffer(memoryview(mmap(-1, BUFFER_SIZE))) for _ in range(BUFFERS))
        self._start = 0
        """The position in the file of the current buffer, which is the first of ``_buffers``."""
        self._runs: list[list[int]] = []
        """[begin, end] of each run to write in the current buffer, in multiples of `ALIGNMENT`."""
        self._filled = 0
        """The end of the data in the current buffer."""

    def close(self) -> None:
        """Stop the thread that writes. It finishes the write that it is at."""
        self._thread.shutdown(cancel_futures=True)

    def space(self, position: int, length: int) -> Iterator[memoryview]:
        """Yield the memory for the ``length`` bytes at ``position``, piece by piece.

        The caller fills each piece before it asks for the next one, and never goes back to an
        earlier position. Raises `OSError` if earlier data could not be written.
        """
        while length:
            start = position - self._start
            if start >= BUFFER_SIZE:
                self._go_to(position - position % BUFFER_SIZE)
                continue
            end = min(start + length, BUFFER_SIZE)
            buffer = self._buffers[0].memory
            buffer[self._filled : start] = ZEROS[self._filled : start]
            self._add_run(start - start % ALIGNMENT, end + -end % ALIGNMENT)
            self._filled = end
            yield buffer[start:end]
            position += end - start
            length -= end - start

    def write(self, data: bytes | memoryview, position: int) -> None:
        """Write ``data`` at ``position``. Raises the errors of `space`."""
        view = memoryview(data)
        for piece in self.space(position, len(data)):
            piece[:] = view[: len(piece)]
            view = view[len(piece) :]

    def finish(self, size: int) -> None:
        """Wait until everything is written and set the file's size.

        The hasher may still be at work. Raises the errors of `space`.
        """
        if size > self._start + BUFFER_SIZE:
            self._go_to(size - size % BUFFER_SIZE)
        self._flush(size - self._start)
        for buffer in self._buffers:
            if buffer.writing:
                buffer.writing.result()
        os.truncate(self._file, size)

    def _add_run(self, start: int, end: int) -> None:
        if self._runs and start - self._runs[-1][1] < MIN_HOLE:
            self._runs[-1][1] = end
        else:
            self._runs.append([start, end])

    def _go_to(self, position: int) -> None:
        """Flush the current buffer and make the next one the buffer at ``position``."""
        self._flush(BUFFER_SIZE)
        zeros = position - self._start - BUFFER_SIZE
        if zeros and self._hasher:
            self._hasher.update_zeros(zeros)
        for future in (self._buffers[0].writing, self._buffers[0].hashing):
            if future:
                future.result()
        self._start = position

    def _flush(self, size: int) -> None:
        """Submit the first ``size`` bytes of the current buffer and turn to the next buffer."""
        buffer = self._buffers[0]
        data = buffer.memory
        end = size + -size % ALIGNMENT
        data[self._filled : end] = ZEROS[self._filled : end]
        self._progress.advance(self._start + size - self._reported)
        self._reported = self._start + size
        buffer.writing = self._thread.submit(self._write_runs, data, self._runs, self._start)
        if self._hasher:
            buffer.hashing = self._hasher.update(data[:size])
        self._buffers.rotate(-1)
        self._runs, self._filled = [], 0

    def _write_runs(self, buffer: memoryview, runs: list[list[int]], position: int) -> None:
        for first, last in runs:
            start = first
            for chunk in range(first, last, MIN_HOLE):
                end = min(chunk + MIN_HOLE, last)
                if is_zero(buffer[chunk:end]):
                    self._write(buffer[start:chunk], position + start)
                    start = end
            self._write(buffer[start:last], position + start)

    def _write(self, data: memoryview, position: int) -> None:
        try:
            pwrite(self._file, data, position)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._direct:
                raise
            # The filesystem supports O_DIRECT, but with a larger alignment.
            self._direct = _set_direct(self._file, False)
            pwrite(self._file, data, position)


def _set_direct(descriptor: int, on: bool) -> bool:
    """Turn O_DIRECT on or off; return whether it is on. Not every filesystem supports it."""
    direct = getattr(os, "O_DIRECT", 0)
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | direct if on else flags & ~direct)
    except OSError:
        return False
    return on and bool(direct)
