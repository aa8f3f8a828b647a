"""Reports progress on a terminal, with colours and a display of what runs."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from fledge.cli.lines import JobReporter, LineReporter, RunningStep, Task
from fledge.host.signals import uninterrupted
from fledge.report import Job, Step, human_size
from fledge.tree.names import printable

FRAMES = 8
"""Pictures per second."""

MIN_BAR, MAX_BAR = 8, 40
"""Columns of a progress bar; where it would be shorter, there is none."""

MAX_LABEL = 32
"""Columns for the label of a transfer."""

SPEED_COLUMNS, TIME_COLUMNS = 70, 50
"""Columns of a terminal that has room for the speed of a transfer, and for the time left."""


HANGING = 6
"""Columns that the rest of a long line is indented by."""

DIGEST = re.compile(r"(\bsha256[: ][0-9a-f]{12})[0-9a-f]{52}\b")
"""A digest; its group is the part that people compare at a glance."""


class ColourReporter(LineReporter):
    """Prints the lines of a log in colour, for a pipe to a program that shows colours."""

    def __init__(self, verbose: bool = False, *, has_colour: bool = True) -> None:
        """As for `TerminalReporter`."""
        super().__init__(verbose)
        self.console = Console(
            stderr=True,
            highlight=False,
            soft_wrap=True,
            force_terminal=True,
            color_system="standard",
            no_color=not has_colour,
        )

    def _print(self, parts: list[tuple[str, str]]) -> None:
        self.console.print(Text.assemble(*parts))


class TerminalReporter(LineReporter):
    """Prints lines in colour. Below them it draws the running step and its transfers.

    There is one display at a time, which only the main thread begins and ends: rich allows one,
    and a download in another thread may outlive its step.
    """

    def __init__(self, verbose: bool = False, *, has_colour: bool = True) -> None:
        """``verbose``: print details, too. ``has_colour``: print in colour."""
        super().__init__(verbose)
        self.console = Console(
            stderr=True, highlight=False, soft_wrap=True, no_color=not has_colour
        )
        self._live: Live | None = None
        self._closed = False

    def close(self) -> None:
        """Remove the display and show the cursor."""
        self._closed = True
        self._end_display()

    @contextmanager
    def job(self, name: str) -> Iterator[Job]:
        """Show a job in the display, which begins with the first one and ends with `close`."""
        if self._live is None:
            self._begin_display(threaded=False)
        with self._jobs(TerminalJob(self, name)) as job:
            yield job

    def tick(self) -> None:
        """Draw the display of the jobs again."""
        if self._live:
            self._live.refresh()

    def _begin(self, title: str) -> None:
        """Print nothing: the display shows the step."""

    def _shortened(self, text: str) -> str:
        return text if self.verbose else DIGEST.sub(r"\1", text)

    def _print(self, parts: list[tuple[str, str]]) -> None:
        text = Text.assemble(*parts)
        first, *rest = text.divide(_breaks(text.plain, self.console.width))
        indent = " " * HANGING
        self.console.print(
            Text("\n").join([first, *(Text.assemble(indent, line) for line in rest)])
        )

    @contextmanager
    def _display(self) -> Iterator[None]:
        try:
            self._begin_display()
            yield
        finally:
            self._end_display()

    def _begin_display(self, *, threaded: bool = True) -> None:
        """Begin to draw, in a thread or whenever `tick` is called."""
        if self._closed:
            return
        # Half of the control codes of a beginning or end would leave the terminal damaged.
        with uninterrupted():
            self._live = Live(
                get_renderable=self._picture,
                console=self.console,
                auto_refresh=threaded,
                refresh_per_second=FRAMES,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()

    def _end_display(self) -> None:
        with uninterrupted():
            if self._live:
                self._live.stop()
                self._live = None

    def _picture(self) -> Group:
        """Draw a line for the running step, and one for each transfer."""
        width = self.console.width - len("^C")  # which the terminal shows behind the last line
        running = self.running
        lines = [self._step_line(running, width)] if running else []
        lines += [self._task_line(task, width) for task in list(self.tasks)]
        lines += [self._job_line(each, width) for each in self.jobs]
        if self.jobs and self.batch_progress:
            done = self.batch_progress.parts()[0]
            lines.append(Text(f"    {done}, {self.seconds():.0f} s", "dim"))
        for line in lines:
            line.truncate(width, overflow="ellipsis" if self.unicode else "crop")
        return Group(*lines)

    def _job_line(self, job: JobReporter, width: int) -> Text:
        name = printable(job.name)
        title = f"{name}  {job.running.title}" if job.running else name
        return self._running_line(title, job.progress(), width)

    def _step_line(self, running: RunningStep, width: int) -> Text:
        return self._running_line(running.title, self.progress(), width)

    def _running_line(self, title: str, parts: list[str], width: int) -> Text:
        frames = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏" if self.unicode else "|/-\\"
        frame = frames[int(time.monotonic() * FRAMES) % len(frames)]
        title = f"{printable(title):<9} "
        while len(parts) > 1 and len(f"  {frame} {title}{', '.join(parts)}") > width:
            parts.pop()
        return Text.assemble((f"  {frame} ", "green"), title, ", ".join(parts))

    def _task_line(self, task: Task, width: int) -> Text:
        numbers = task.bytes() or task.elapsed()
        if width >= SPEED_COLUMNS and (speed := task.speed()):
            numbers += f"  {human_size(int(speed))}/s"
        if width >= TIME_COLUMNS and (left := task.left()):
            numbers += f"  {left.removesuffix(' left')}"
        label = printable(task.label)
        room = min(MAX_LABEL, width // 2, width - len("     ") - len(numbers))
        if len(label) > room:
            dots = "…" if self.unicode else "..."
            # The end tells one layer of an image from the others.
            label = dots + label[len(label) + len(dots) - room :]
        bar = self._bar(task, min(MAX_BAR, width - len("       ") - len(label) - len(numbers)))
        return Text.assemble("    ", label, " ", *bar, numbers)

    def _bar(self, task: Task, width: int) -> list[tuple[str, str]]:
        if not task.total or width < MIN_BAR:
            return []
        done, rest = ("━", "╌") if self.unicode else ("#", "-")
        filled = width * min(task.done, task.total) // task.total
        return [(done * filled, "green"), (rest * (width - filled), "dim"), (" ", "")]


class TerminalJob(JobReporter):
    """The reporter of a job on a terminal. Its steps are in the display, and leave no lines."""

    def _begin(self, title: str) -> None:
        """Print nothing."""

    def _end(self, step: Step, seconds: float) -> None:
        """Print a line if the user wants to see more."""
        if self.verbose:
            super()._end(step, seconds)

    def _fail(self, title: str) -> None:
        """Print nothing: the line of the job says that it failed."""

    def _shortened(self, text: str) -> str:
        return text if self.verbose else DIGEST.sub(r"\1", text)


def _breaks(line: str, width: int) -> list[int]:
    """Return where to break a line into lines of a width: between words, never in one."""
    breaks: list[int] = []
    start = 0
    for word in re.finditer(r"\S+", line):
        indent = HANGING if breaks else 0
        if indent + word.end() - start > width and line[start : word.start()].strip():
            start = word.start()
            breaks.append(start)
    return breaks
