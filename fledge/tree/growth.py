"""Lets a thread read a file while another thread still writes it."""

from __future__ import annotations

import threading

POLL_INTERVAL = 0.2
"""Seconds of one wait: one that begins just after Ctrl-C would not be interrupted."""

STRETCH = 4 << 20
"""Bytes that a waiting reader lets the writer get ahead, so that the two do not take turns for each
small piece."""


class Growth:
    """How far a file has been written. Its writer appends, and its readers wait for the data."""

    def __init__(self, size: int = 0, *, complete: bool = False) -> None:
        self.size = size
        """Bytes that are in the file. They may yet turn out to be wrong, unless it is verified."""
        self.complete = complete
        """Whether no more will be written, be it because the writer failed."""
        self._changed = threading.Condition()
        self._wanted: int | None = None
        """The size that a reader waits for."""

    def advance(self, size: int) -> None:
        """Report that ``size`` bytes are in the file."""
        self.size = size
        if self._wanted is not None and size >= self._wanted:
            self._wake()

    def end(self) -> None:
        """Report that nothing more will be written."""
        self.complete = True
        self._wake()

    def reach(self, size: int) -> int:
        """Wait until ``size`` bytes are in the file, or it is complete; return how many are."""
        if size > self.size:
            with self._changed:
                self._wanted = size + STRETCH
                while self.size < self._wanted and not self.complete:
                    self._changed.wait(POLL_INTERVAL)
                self._wanted = None
        return self.size

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
