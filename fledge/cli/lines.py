"""Reports progress on standard error, as plain lines for a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fledge.report import Reporter, Step, Transfer, human_size
from fledge.tree.names import printable

LINE_INTERVAL = 10.0
"""Seconds between two lines about one transfer."""

Part = str | tuple[str, str]
"""Text, or text and its rich style."""


class LineReporter(Reporter):
    """Prints steps, notes and long transfers, without styles."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        unicode = sys.stderr.encoding.lower().startswith("utf")
        self._done, self._failed = ("✓", "✗") if unicode else ("ok", "failed")

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Print a line when the step ends."""
        step = Step(title)
        start = time.perf_counter()
        try:
            yield step
        except BaseException:
            self.line((f"  {self._failed} ", "red"), title)
            raise
        took = time.perf_counter() - start
        self.line(
            (f"  {self._done} ", "green"), (f"{title:<9} "), step.detail, (f"  {took:.2f} s", "dim")
        )

    @contextmanager
    def transfer(self, label: str) -> Iterator[Transfer]:
        """Print a line every `LINE_INTERVAL` seconds."""
        yield _LineTransfer(self, label)

    def note(self, message: str) -> None:
        """Print the message, indented below the steps."""
        self.line(("    ", ""), (message, "yellow"))

    def seconds(self) -> float:
        """Return the seconds since this reporter was made."""
        return time.perf_counter() - self._start

    def line(self, *parts: Part) -> None:
        """Print a line, and escape control characters in it."""
        styled = [(part, "") if isinstance(part, str) else part for part in parts]
        self._print([(printable(text), style) for text, style in styled])

    def _print(self, parts: list[tuple[str, str]]) -> None:
        """Print texts without control characters, each with its style."""
        print("".join(text for text, _ in parts), file=sys.stderr)


class _LineTransfer(Transfer):
    """Prints a line every `LINE_INTERVAL` seconds."""

    def __init__(self, reporter: Reporter, label: str) -> None:
        self.reporter = reporter
        self.label = label
        self.done = 0
        self.total: int | None = None
        self.last = time.monotonic()

    def restart(self, done: int, total: int | None) -> None:
        self.done, self.total = done, total

    def advance(self, count: int) -> None:
        self.done += count
        if time.monotonic() - self.last >= LINE_INTERVAL:
            self.last = time.monotonic()
            total = "" if self.total is None else f" of {human_size(self.total)}"
            self.reporter.note(f"{self.label}: {human_size(self.done)}{total}")
