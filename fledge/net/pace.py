"""Says which downloads are too slow."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Pace:
    """The least speed of downloads. Those that run at the same time share a link, so each needs
    only its share of it. Threads may share one.
    """

    def __init__(self, least: int) -> None:
        """``least``: bytes per second of all running downloads together. 0: none is too slow."""
        self._least = least
        self._running = 0
        self._lock = threading.Lock()

    @contextmanager
    def download(self) -> Iterator[None]:
        """Count a download as running until the end of the block."""
        with self._lock:
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1

    def due(self, seconds: float) -> int:
        """Return how many bytes one download must receive in that time: 1 or more."""
        return max(1, int(self._least * seconds / max(1, self._running)))
