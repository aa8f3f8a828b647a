"""The digest of a file that is still being written."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path
from types import TracebackType

CHUNK = 8 << 20
"""Bytes read at once. After each the thread has to wait until the writer lets it run, for up to
5 ms (sys.getswitchinterval)."""


class Following:
    """A thread that reads a file behind whoever writes it, and digests it meanwhile.

    hashlib and the kernel work without the interpreter's lock, so this takes a core that
    would idle, and time only for what is left in the end. Leaving the block ends the thread.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._changed = threading.Condition()
        self._limit = 0
        self._stopped = False
        self._error: OSError | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Following:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        with self._changed:
            self._limit = 0
        self._stop()

    def follow(self, path: Path) -> None:
        """Begin with the file that is there now, wherever it is moved later."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        thread = threading.Thread(target=self._run, args=(descriptor,), daemon=True)
        thread.start()
        # Not before: one whose start an interrupt cuts short cannot be joined.
        self._thread = thread

    def advance(self, position: int) -> None:
        """Nothing before ``position``, in bytes, will be written any more."""
        with self._changed:
            self._limit = max(self._limit, position)
            self._changed.notify()

    def sha256(self) -> str:
        """In hex, of all that `advance` has told of; waits for it.

        Raises `OSError` if it cannot be read.
        """
        self._stop()
        if self._error:
            raise self._error
        return self._digest.hexdigest()

    def _stop(self) -> None:
        """End the thread when it has come as far as it may go."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread:
            self._thread.join()

    def _run(self, descriptor: int) -> None:
        position = 0
        view = memoryview(bytearray(CHUNK))
        try:
            while (limit := self._wait(position)) > position:
                count = os.preadv(descriptor, [view[: min(limit - position, CHUNK)]], position)
                if not count:
                    raise OSError(errno.EIO, "it has become shorter")
                self._digest.update(view[:count])
                _write_back(descriptor, position, count)
                position += count
        except OSError as error:
            self._error = error
        finally:
            os.close(descriptor)

    def _wait(self, position: int) -> int:
        """How far to read; not beyond ``position`` if no more is to come."""
        with self._changed:
            while self._limit <= position and not self._stopped:
                self._changed.wait()
            return self._limit


def _write_back(descriptor: int, position: int, count: int) -> None:
    """Let the kernel begin to write to the disk, so that a sync in the end waits less."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, position, count, os.POSIX_FADV_DONTNEED)
