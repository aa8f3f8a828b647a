"""What a person sees of a build, on standard error: plain lines, for a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fledge.report import Reporter, Step, Transfer, human_size
from fledge.tree.names import printable

if TYPE_CHECKING:
    from fledge.operations.build import Artifact

LINE_INTERVAL = 10.0
"""Seconds between two lines on one transfer."""


class LineReporter(Reporter):
    """Prints steps, notes, and transfers that take long."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        unicode = sys.stderr.encoding.lower().startswith("utf")
        self.done, self.failed = ("✓", "✗") if unicode else ("ok", "failed")

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        step = Step(title)
        start = time.perf_counter()
        try:
            yield step
        except BaseException:
            self._line((f"  {self.failed} ", "red"), title)
            raise
        took = time.perf_counter() - start
        self._line(
            (f"  {self.done} ", "green"), (f"{title:<9} "), step.detail, (f"  {took:.2f} s", "dim")
        )

    @contextmanager
    def transfer(self, label: str) -> Iterator[Transfer]:
        yield _Lines(self, label)

    def note(self, message: str) -> None:
        self._line(("    ", ""), (message, "yellow"))

    def inputs(self, artifact: Artifact) -> None:
        """What it was built from, as sha256sum prints it."""
        for item in artifact.inputs:
            self._line(f"    {item.sha256}  {item.uri}")

    def summary(self, artifact: Artifact) -> None:
        """What was built, for a person."""
        self._line(
            (f"  {artifact.path}", "bold"),
            f"  {human_size(artifact.size)}, {artifact.entries} entries of"
            f" {human_size(artifact.content_size)}, in {time.perf_counter() - self.start:.1f} s",
        )
        self._line((f"  sha256 {artifact.sha256}", "dim"))

    def _line(self, *parts: str | tuple[str, str]) -> None:
        """A line of texts, some of them with a style."""
        styled = [(part, "") if isinstance(part, str) else part for part in parts]
        self._print([(printable(text), style) for text, style in styled])

    def _print(self, parts: list[tuple[str, str]]) -> None:
        """``parts`` are what any terminal may get, each with its style."""
        print("".join(text for text, _ in parts), file=sys.stderr)


class _Lines(Transfer):
    """A line now and then."""

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
