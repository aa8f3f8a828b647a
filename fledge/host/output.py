"""A file written once, from front to back, and digested on the way."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from mmap import mmap
from pathlib import Path

import msgspec

from fledge.host.files import pwrite
from fledge.tree.content import read_file

BUFFER_SIZE = 4 << 20
"""Bytes handed to the threads at once. After each they have to wait until the interpreter lets
them run (sys.getswitchinterval)."""

BUFFERS = 3
"""One that is filled, one that is digested, one that is written. More give nothing."""

MIN_HOLE = 1 << 16
"""Bytes of zeros that are worth two writes instead of one."""

UNIT = 4096
"""What positions, sizes and addresses are multiples of for O_DIRECT, on all common disks."""

ZEROS = memoryview(bytes(BUFFER_SIZE))


class Digest:
    """A SHA-256, computed by a thread of its own, of what is handed over in that order."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)
        self._stopped = False

    def close(self) -> None:
        """End the thread."""
        self._stopped = True
        self._thread.shutdown(cancel_futures=True)

    def update(self, data: bytes | memoryview) -> Future[None]:
        """Hand over ``data``, which has to stay as it is until that is done."""
        return self._thread.submit(self._sha256.update, data)

    def update_zeros(self, count: int) -> None:
        """Hand over that many bytes."""
        self._thread.submit(self._take_zeros, count)

    def update_file(self, path: Path) -> None:
        """Hand over what is in a file."""
        for piece in read_file(path):
            self.update(piece).result()

    def hexdigest(self) -> str:
        """Of all that was handed over, when that is done."""
        return self._thread.submit(self._sha256.hexdigest).result()

    def _take_zeros(self, count: int) -> None:
        while count and not self._stopped:
            self._sha256.update(ZEROS[:count])
            count -= min(count, BUFFER_SIZE)


class _Buffer(msgspec.Struct):
    memory: memoryview
    writing: Future[None] | None = None
    digesting: Future[None] | None = None


class Output:
    """Buffers that are filled in order, while others of them are digested and written.

    hashlib and the kernel work without the interpreter's lock, so both take cores that would
    idle. Where the filesystem can, data goes to the disk directly: at the end nothing is left
    to be synced, and the page cache keeps what else was in it. What is not written is zeros;
    where there are many they are a hole.
    """

    def __init__(self, descriptor: int, digest: Digest | None = None) -> None:
        """Of a file that is empty, open for writing; ``digest`` gets all that is in it."""
        self._file = descriptor
        self._digest = digest
        self._direct = _set_direct(descriptor, True)
        self._thread = ThreadPoolExecutor(1)
        self._buffers = deque(_Buffer(memoryview(mmap(-1, BUFFER_SIZE))) for _ in range(BUFFERS))
        self._start = 0
        """Where the first of them goes to in the file."""
        self._runs: list[list[int]] = []
        """Begin and end of what is to be written of it, in whole units."""
        self._filled = 0
        """The end of what was put into it."""

    def close(self) -> None:
        """End the thread that writes."""
        self._thread.shutdown(cancel_futures=True)

    def space(self, position: int, length: int) -> Iterator[memoryview]:
        """Where to put the ``length`` bytes from ``position`` on, piece by piece.

        Each piece has to be filled before the next is asked for, and nothing that lies before
        can be asked for again. Raises `OSError` if the disk refuses what was put before.
        """
        while length:
            start = position - self._start
            if start >= BUFFER_SIZE:
                self._go_to(position - position % BUFFER_SIZE)
                continue
            end = min(start + length, BUFFER_SIZE)
            buffer = self._buffers[0].memory
            buffer[self._filled : start] = ZEROS[self._filled : start]
            self._add_run(start - start % UNIT, end + -end % UNIT)
            self._filled = end
            yield buffer[start:end]
            position += end - start
            length -= end - start

    def write(self, data: bytes, position: int) -> None:
        """Put ``data`` there. Raises as `space` does."""
        view = memoryview(data)
        for piece in self.space(position, len(data)):
            piece[:] = view[: len(piece)]
            view = view[len(piece) :]

    def finish(self, size: int) -> None:
        """Make the file ``size`` bytes long; the digest comes later. Raises as `space` does."""
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
        """Let the next buffer be that of ``position``."""
        self._flush(BUFFER_SIZE)
        zeros = position - self._start - BUFFER_SIZE
        if zeros and self._digest:
            self._digest.update_zeros(zeros)
        for future in (self._buffers[0].writing, self._buffers[0].digesting):
            if future:
                future.result()
        self._start = position

    def _flush(self, size: int) -> None:
        """Hand over the buffer with ``size`` bytes, and turn to the one handed over first."""
        buffer = self._buffers[0]
        data = buffer.memory
        end = size + -size % UNIT
        data[self._filled : end] = ZEROS[self._filled : end]
        buffer.writing = self._thread.submit(self._write_runs, data, self._runs, self._start)
        if self._digest:
            buffer.digesting = self._digest.update(data[:size])
        self._buffers.rotate(-1)
        self._runs, self._filled = [], 0

    def _write_runs(self, buffer: memoryview, runs: list[list[int]], position: int) -> None:
        for first, last in runs:
            start = first
            for chunk in range(first, last, MIN_HOLE):
                end = min(chunk + MIN_HOLE, last)
                if _is_zero(buffer[chunk:end]):
                    self._write(buffer[start:chunk], position + start)
                    start = end
            self._write(buffer[start:last], position + start)

    def _write(self, data: memoryview, position: int) -> None:
        try:
            pwrite(self._file, data, position)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._direct:
                raise
            # A filesystem that has O_DIRECT, but not for such positions.
            self._direct = _set_direct(self._file, False)
            pwrite(self._file, data, position)


def _set_direct(descriptor: int, on: bool) -> bool:
    """Write past the page cache or not, where this can be chosen; whether it is so now."""
    direct = getattr(os, "O_DIRECT", 0)
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | direct if on else flags & ~direct)
    except OSError:
        return False
    return on and bool(direct)


def _is_zero(data: memoryview) -> bool:
    # Comparing views takes every byte for itself: only after the first ones are zeros.
    return data[:UNIT] == ZEROS[:UNIT] and bytes(data) == bytes(len(data))
