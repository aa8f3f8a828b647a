"""What a person sees of a build, on standard error: bars on a terminal, plain lines in CI."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from fledge.build import Artifact
from fledge.report import Reporter, Step, Transfer, human_size
from fledge.tree import printable

LINE_INTERVAL = 10.0
"""Seconds between two lines on one transfer where there is no terminal for a bar."""


class TerminalReporter(Reporter):
    """Draws steps, transfers and notes."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        unicode = self.console.encoding.startswith("utf")
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
        if not self.console.is_terminal:
            yield _Lines(self, label)
            return
        columns = (
            *(SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn()),
            *(DownloadColumn(binary_units=True), _Speed(), TimeRemainingColumn()),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield _Bar(progress, label)

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
        line = Text()
        for part in parts:
            text, style = (part, "") if isinstance(part, str) else part
            line.append(printable(text), style)
        self.console.print(line)


class _Speed(ProgressColumn):
    """In the units of the sizes beside it."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{human_size(int(speed))}/s" if speed else "")


class _Bar(Transfer):
    def __init__(self, progress: Progress, label: str) -> None:
        self.progress = progress
        self.task = progress.add_task(label, total=None)

    def advance(self, count: int) -> None:
        self.progress.advance(self.task, count)

    def restart(self, done: int, total: int | None) -> None:
        self.progress.update(self.task, completed=done, total=total)


class _Lines(Transfer):
    """A line now and then, for a log."""

    def __init__(self, terminal: TerminalReporter, label: str) -> None:
        self.terminal = terminal
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
            self.terminal.note(f"{self.label}: {human_size(self.done)}{total}")
