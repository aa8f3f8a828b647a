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


class Job:
    """One of several pieces of work that run at the same time, such as the build of one plugin.

    ``detail`` is its result, shown on the line that closes it.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        """Receives the reports of this work alone."""
        self.detail = ""


class Transfer:
    """A download, or other work whose progress is counted in bytes."""

    def advance(self, count: int) -> None:
        """Report that ``count`` more bytes are done."""

    def restart(self, done: int, total: int | None) -> None:
        """Restart the count at ``done`` bytes of ``total``; None if the total is unknown."""


class Batch:
    """Items that are fetched and prepared together, such as the layers of an image."""

    def arrived(self, size: int) -> None:
        """Report that all ``size`` bytes of one item are on this machine."""

    def finished(self) -> None:
        """Report that one item is ready for use."""


class Reporter:
    """Receives progress reports and ignores them. Subclasses show them."""

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Wrap one step of a build. If the block raises, the step counts as unfinished."""
        yield Step(title)

    @contextmanager
    def transfer(self, label: str) -> Iterator[Transfer]:
        """Wrap a download; `Transfer.restart` sets its total. Any thread may call it."""
        yield Transfer()

    @contextmanager
    def work(self, label: str) -> Iterator[Transfer]:
        """Wrap work on this machine that is counted in bytes, such as unpacking a layer."""
        yield Transfer()

    @contextmanager
    def batch(self, noun: str, count: int, size: int | None) -> Iterator[Batch]:
        """Wrap work on ``count`` items that have ``size`` bytes together; None: unknown.

        ``noun`` is their name in the plural. Transfers in the block belong to the items.
        """
        yield Batch()

    @contextmanager
    def job(self, name: str) -> Iterator[Job]:
        """Wrap one of several pieces of work that run at the same time, in other processes.

        If the block raises, it counts as failed. The base class reports all of them as one.
        """
        yield Job(self)

    def tick(self) -> None:
        """Report that time passes while jobs run: a display need not have a thread of its own."""

    def detail(self, message: str) -> None:
        """Report something that only curious people want to know: that a file was cached."""

    def output(self, line: str) -> None:
        """Report a line that a program printed which does a part of the work, such as a builder."""

    def note(self, message: str) -> None:
        """Report an event that is not an error: a retry, an input without a checksum."""


def counted(count: int, noun: str) -> str:
    """Format a count with its noun: ``1 file``, ``2 files``, ``3 directories``."""
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun[:-1]}ies" if noun.endswith("y") else f"{count} {noun}s"


def human_size(size: int) -> str:
    """Format a number of bytes for people: ``1.5 MiB``."""
    value = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{size} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def human_share(done: int, total: int | None) -> str:
    """Format how much of a number of bytes is done: ``0.5/1.5 MiB``. None: ``total`` is unknown."""
    if total is None or done > total:
        return human_size(done)
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if total >= 1024**power:
            return f"{done / 1024**power:.1f}/{total / 1024**power:.1f} {unit}"
    return f"{done}/{total} bytes"
