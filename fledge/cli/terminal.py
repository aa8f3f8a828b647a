"""Reports progress on a terminal, with colours and progress bars."""

from __future__ import annotations

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

from fledge.cli.lines import LineReporter
from fledge.report import Transfer, human_size


class TerminalReporter(LineReporter):
    """Prints lines in colour, and a progress bar for each transfer."""

    def __init__(self) -> None:
        super().__init__()
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)

    @contextmanager
    def transfer(self, label: str) -> Iterator[Transfer]:
        """Draw a progress bar that disappears at the end."""
        columns = (
            *(SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn()),
            *(DownloadColumn(binary_units=True), _Speed(), TimeRemainingColumn()),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield _Bar(progress, label)

    def _print(self, parts: list[tuple[str, str]]) -> None:
        self.console.print(Text.assemble(*parts))


class _Speed(ProgressColumn):
    """The speed, in the units of `human_size`."""

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
