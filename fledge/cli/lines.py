"""Reports progress on standard error, as plain lines for a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fledge.report import Batch, Job, Reporter, Step, Transfer, human_share, human_size
from fledge.tree.names import printable

LINE_INTERVAL = 10.0
"""Seconds between two lines about the running step."""

Part = str | tuple[str, str]
"""Text, or text and its rich style."""


class LineReporter(Reporter):
    """Prints steps, notes and, from time to time, the progress of the running step."""

    def __init__(self, verbose: bool = False) -> None:
        """``verbose``: print details, too."""
        self.verbose = verbose
        self._start = time.perf_counter()
        self.unicode = sys.stderr.encoding.lower().startswith("utf")
        self._done, self._failed = ("✓", "✗") if self.unicode else ("ok", "failed")
        self.tasks: list[Task] = []
        """The running transfers and other work, of all threads."""
        self.running: RunningStep | None = None
        self.batch_progress: BatchProgress | None = None
        self._depth = 0
        """How many blocks of the main thread have begun and not ended."""
        self.has_downloads = False
        """Whether anything was downloaded."""
        self.jobs: list[JobReporter] = []
        """The reporters of the running jobs."""
        self._next_lines = time.monotonic() + LINE_INTERVAL

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Print a line when the step ends."""
        step = Step(title)
        start = time.perf_counter()
        self._begin(title)
        try:
            # The display has something to draw until it ends, so that its end leaves no empty line.
            self.running = RunningStep(title)
            try:
                with self._block():
                    yield step
            finally:
                self.running = None
        except BaseException:
            self._fail(title)
            raise
        self._end(step, time.perf_counter() - start)

    @contextmanager
    def job(self, name: str) -> Iterator[Job]:
        """Print the lines of a job behind its name."""
        with self._jobs(JobReporter(self, name)) as job:
            yield job

    def tick(self) -> None:
        """Print the progress of the running jobs, from time to time."""
        if time.monotonic() >= self._next_lines:
            self._next_lines = time.monotonic() + LINE_INTERVAL
            for each in self.jobs:
                if each.running:
                    each.note(f"{each.running.title}: {', '.join(each.progress())}")

    @contextmanager
    def transfer(self, label: str) -> Iterator[Transfer]:
        """Show the progress of a download."""
        with self._task(Task(label, self)) as task:
            yield task

    @contextmanager
    def work(self, label: str) -> Iterator[Transfer]:
        """Show the progress of work on this machine."""
        with self._task(Task(label, None)) as task:
            yield task

    @contextmanager
    def batch(self, noun: str, count: int, size: int | None) -> Iterator[Batch]:
        """Show one progress for all items together."""
        batch = BatchProgress(self, noun, count, size)
        self.batch_progress = batch if count else None
        try:
            yield batch
        finally:
            self.batch_progress = None

    def detail(self, message: str) -> None:
        """Print the message like a note, if this reporter is verbose."""
        if self.verbose:
            self.line("    ", (message, "dim"))

    def output(self, line: str) -> None:
        """Print the line, indented as a note is."""
        self.line("    ", (line, "dim"))

    def note(self, message: str) -> None:
        """Print the message, indented below the steps."""
        self.line("    ", (self._shortened(message), "yellow"))

    def seconds(self) -> float:
        """Return the seconds since this reporter was made."""
        return time.perf_counter() - self._start

    def line(self, *parts: Part) -> None:
        """Print a line, and escape control characters in it."""
        styled = [(part, "") if isinstance(part, str) else part for part in parts]
        self._print([(printable(text), style) for text, style in styled])

    def close(self) -> None:
        """End the display of progress, also that of work which other threads go on with."""

    def progress(self) -> list[str]:
        """Describe how far the running step is: ``5/8 layers``, ``210.0/306.0 MiB``, the time left.

        What matters most is first.
        """
        if self.running is None:
            return []
        tasks = list(self.tasks)
        parts = []
        if self.batch_progress:
            parts = self.batch_progress.parts()
        elif len(tasks) == 1:
            parts = tasks[0].parts()
        elif tasks:
            parts = [human_size(sum(task.done for task in tasks))]
        if parts and parts[-1].endswith("left"):
            return parts
        return [*parts, f"{time.monotonic() - self.running.start:.0f} s"]

    def _begin(self, title: str) -> None:
        """Print a line when a step begins."""
        self.line(f"  {'…' if self.unicode else '...'} {title}")

    def _end(self, step: Step, seconds: float) -> None:
        """Print a line when a step ends."""
        self.line(
            (f"  {self._done} ", "green"),
            (f"{step.title:<9} "),
            self._shortened(step.detail),
            (f"  {seconds:.2f} s", "dim"),
        )

    def _fail(self, title: str) -> None:
        """Print a line when a step fails."""
        self.line((f"  {self._failed} ", "red"), title)

    @contextmanager
    def _jobs(self, reporter: JobReporter) -> Iterator[Job]:
        """Show a job among those that run, and print a line when it ends."""
        job = Job(reporter)
        self.jobs.append(reporter)
        try:
            yield job
        except BaseException:
            self._fail(reporter.name)
            raise
        else:
            step = Step(reporter.name)
            step.detail = job.detail
            self._end(step, reporter.seconds())
        finally:
            self.jobs.remove(reporter)

    def _shortened(self, text: str) -> str:
        """Shorten what a person need not read to the end. A log gets everything."""
        return text

    def _print(self, parts: list[tuple[str, str]]) -> None:
        """Print texts without control characters, each with its style."""
        # In one call, because other threads print too.
        sys.stderr.write("".join(text for text, _ in parts) + "\n")

    @contextmanager
    def _task(self, task: Task) -> Iterator[Transfer]:
        self.tasks.append(task)
        try:
            with self._block():
                yield task
        finally:
            self.tasks.remove(task)

    @contextmanager
    def _block(self) -> Iterator[None]:
        """Show progress while a block of the main thread runs.

        Blocks of other threads are shown while one of the main thread runs, which may end first.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._depth += 1
        try:
            if self._depth == 1:
                with self._display():
                    yield
            else:
                yield
        finally:
            self._depth -= 1

    @contextmanager
    def _display(self) -> Iterator[None]:
        """Show the progress until the end of the block: here, print it from time to time."""
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(LINE_INTERVAL):
                if self.running:
                    self.note(f"{self.running.title}: {', '.join(self.progress())}")
                else:
                    for task in list(self.tasks):
                        self.note(f"{task.label}: {', '.join(task.parts() or [task.elapsed()])}")

        threading.Thread(target=work, daemon=True).start()
        try:
            yield
        finally:
            stop.set()


class JobReporter(LineReporter):
    """The reporter of one of several jobs. It prints its lines behind the name of the job.

    It draws nothing: `tick` of the whole does, for all jobs.
    """

    def __init__(self, whole: LineReporter, name: str) -> None:
        super().__init__(whole.verbose)
        self.name = name
        self._whole = whole

    @contextmanager
    def transfer(self, label: str) -> Iterator[Transfer]:
        """Show the progress of a download."""
        with self._task(Task(label, self._whole)) as task:
            yield task

    def _print(self, parts: list[tuple[str, str]]) -> None:
        self._whole._print([(f"{printable(self.name)}:", "bold"), *parts])

    @contextmanager
    def _block(self) -> Iterator[None]:
        yield


class RunningStep:
    """The step that runs, and when it began."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.start = time.monotonic()


class Task(Transfer):
    """The progress of a transfer or of other work."""

    def __init__(self, label: str, downloader: LineReporter | None) -> None:
        """``downloader``: the reporter to tell of downloaded bytes; None: nothing is downloaded."""
        self.label = label
        self.downloader = downloader
        self.done = 0
        self.total: int | None = None
        self._begin = time.monotonic()
        self._measured = Measured()

    def restart(self, done: int, total: int | None) -> None:
        """Begin to count at ``done`` bytes."""
        self.done, self.total = done, total
        self._measured = Measured(done)

    def advance(self, count: int) -> None:
        """Count bytes."""
        self.done += count
        if self.downloader:
            self.downloader.has_downloads = True

    def speed(self) -> float:
        """Return the bytes per second so far."""
        return self._measured.speed(self.done)

    def left(self) -> str:
        """Describe the time that is left; empty if it cannot be known."""
        return self._measured.left(self.done, self.total)

    def elapsed(self) -> str:
        """Describe how long this has been running."""
        return f"{time.monotonic() - self._begin:.0f} s"

    def bytes(self) -> str:
        """Describe the bytes; empty if none are counted yet."""
        counted = self.done or self.total is not None
        return human_share(self.done, self.total) if counted else ""

    def parts(self) -> list[str]:
        """Describe the bytes and the time left."""
        return list(filter(None, (self.bytes(), self.left())))


class BatchProgress(Batch):
    """The progress of several items together."""

    def __init__(self, reporter: LineReporter, noun: str, count: int, size: int | None) -> None:
        self._reporter = reporter
        self._noun, self._count, self._size = noun, count, size
        self._arrived = 0
        self._finished = 0
        self._most = 0
        self._lock = threading.Lock()
        self._measured = Measured()

    def arrived(self, size: int) -> None:
        """Count the bytes of an item that has arrived."""
        with self._lock:
            self._arrived += size

    def finished(self) -> None:
        """Count an item."""
        with self._lock:
            self._finished += 1

    def parts(self) -> list[str]:
        """Describe the items, the bytes and the time left."""
        running = sum(task.done for task in self._reporter.tasks if task.downloader)
        # Between the end of a transfer and `arrived` the bytes are counted nowhere.
        done = self._most = max(self._most, self._arrived + running)
        items = f"{self._finished}/{self._count} {self._noun}"
        left = self._measured.left(done, self._size)
        return list(filter(None, (items, human_share(done, self._size), left)))


class Measured:
    """Measures how fast bytes are processed from now on."""

    def __init__(self, done: int = 0) -> None:
        self._first = done
        self._start = time.monotonic()

    def speed(self, done: int) -> float:
        """Return the bytes per second, if ``done`` bytes are done now."""
        took = time.monotonic() - self._start
        return (done - self._first) / took if took > 0 else 0

    def left(self, done: int, total: int | None) -> str:
        """Describe the time until ``total`` bytes are done; empty if it cannot be known."""
        speed = self.speed(done)
        if total is None or speed <= 0 or done > total:
            return ""
        seconds = int((total - done) / speed)
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"
