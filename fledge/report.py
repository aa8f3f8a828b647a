"""Progress reports from the library to its caller.

The library calls the methods of a `Reporter`. The base class ignores every call; the command
line passes a subclass that draws. The library itself prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Step:
    """One step of a build. ``detail`` is its result, shown on the line that closes the step."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.detail = ""


class Transfer:
    """Work whose progress is counted in bytes, such as a download."""

    def advance(self, count: int) -> None:
        """Report that ``count`` more bytes are done."""

    def restart(self, done: int, total: int | None) -> None:
        """Restart the count at ``done`` bytes of ``total``; None if the total is unknown."""


class Reporter:
    """Receives progress reports and ignores them. Subclasses show them."""

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Wrap one step of a build. If the block raises, the step counts as unfinished."""
        yield Step(title)

    @contextmanager
    def transfer(self, label: str) -> Iterator[Transfer]:
        """Wrap work that is counted in bytes; `Transfer.restart` sets the total."""
        yield Transfer()

    def note(self, message: str) -> None:
        """Report an event that is not an error: a retry, an input without a checksum."""


def human_size(size: int) -> str:
    """Format a number of bytes for people: ``1.5 MiB``."""
    value = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{size} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
