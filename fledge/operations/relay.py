"""Passes on the reports of one process to the reporter of another.

`Relay` is the reporter of the process that works; it sends a `Report` for each call. `Replay` makes
the same calls in the process that shows them.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import msgspec

from fledge.errors import FledgeError
from fledge.report import Batch, Reporter, Step, Transfer

INTERVAL = 0.1
"""Minimum seconds between two reports of the bytes of one transfer."""


class Entered(msgspec.Struct, frozen=True):
    """A context of the reporter begins, such as a step."""

    number: int
    """Names the context in later reports."""
    method: str
    """The method of `Reporter` that makes it."""
    arguments: tuple[Any, ...]


class Called(msgspec.Struct, frozen=True):
    """A method was called."""

    number: int | None
    """The context whose object it was called on; None: the reporter."""
    method: str
    arguments: tuple[Any, ...]


class Left(msgspec.Struct, frozen=True):
    """A context ends."""

    number: int
    failed: bool
    detail: str = ""
    """The result of a step."""


Report = Entered | Called | Left


class Relay(Reporter):
    """Sends every call as a `Report`. Any thread may call it."""

    def __init__(self, send: Callable[[Report], None]) -> None:
        self._send = send
        self._numbers = itertools.count()

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Relay a step, with its detail when it ends."""
        step = Step(title)
        with self._context("step", (title,), lambda: step.detail):
            yield step

    @contextmanager
    def transfer(self, label: str) -> Iterator[Transfer]:
        """Relay a download."""
        with self._context("transfer", (label,)) as number, _RelayedTransfer(self, number) as each:
            yield each

    @contextmanager
    def work(self, label: str) -> Iterator[Transfer]:
        """Relay work on this machine."""
        with self._context("work", (label,)) as number, _RelayedTransfer(self, number) as each:
            yield each

    @contextmanager
    def batch(self, noun: str, count: int, size: int | None) -> Iterator[Batch]:
        """Relay a batch."""
        with self._context("batch", (noun, count, size)) as number:
            yield _RelayedBatch(self, number)

    def detail(self, message: str) -> None:
        """Relay a detail."""
        self.call(None, "detail", message)

    def output(self, line: str) -> None:
        """Relay a line of a program."""
        self.call(None, "output", line)

    def note(self, message: str) -> None:
        """Relay a note."""
        self.call(None, "note", message)

    def call(self, number: int | None, method: str, *arguments: Any) -> None:
        """Relay a call of a method of a context's object; None: of the reporter."""
        self._send(Called(number, method, arguments))

    @contextmanager
    def _context(
        self, method: str, arguments: tuple[Any, ...], detail: Callable[[], str] = str
    ) -> Iterator[int]:
        number = next(self._numbers)
        self._send(Entered(number, method, arguments))
        failed = True
        try:
            yield number
            failed = False
        finally:
            self._send(Left(number, failed, detail()))


class _RelayedTransfer(Transfer):
    """Counts bytes, and relays them from time to time. Leaving the context relays the rest."""

    def __init__(self, relay: Relay, number: int) -> None:
        self._relay, self._number = relay, number
        self._lock = threading.Lock()
        self._count = 0
        self._next = 0.0

    def __enter__(self) -> _RelayedTransfer:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._flush()

    def advance(self, count: int) -> None:
        """Count bytes."""
        with self._lock:
            self._count += count
            if time.monotonic() >= self._next:
                self._flush()
                self._next = time.monotonic() + INTERVAL

    def restart(self, done: int, total: int | None) -> None:
        """Relay a restart."""
        with self._lock:
            self._count = 0
            self._relay.call(self._number, "restart", done, total)

    def _flush(self) -> None:
        if self._count:
            self._relay.call(self._number, "advance", self._count)
            self._count = 0


class _RelayedBatch(Batch):
    def __init__(self, relay: Relay, number: int) -> None:
        self._relay, self._number = relay, number

    def arrived(self, size: int) -> None:
        self._relay.call(self._number, "arrived", size)

    def finished(self) -> None:
        self._relay.call(self._number, "finished")


class Replay:
    """Makes the calls that a `Relay` has sent, on another reporter."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._open: dict[int, tuple[AbstractContextManager[Any], Any]] = {}

    def close(self) -> None:
        """End what is still open, because the process that began it has died."""
        for number in list(self._open)[::-1]:
            self.make(Left(number, failed=True))

    def make(self, report: Report) -> None:
        """Make one call."""
        if isinstance(report, Entered):
            context = getattr(self._reporter, report.method)(*report.arguments)
            self._open[report.number] = context, context.__enter__()
        elif isinstance(report, Called):
            where = self._reporter if report.number is None else self._open[report.number][1]
            getattr(where, report.method)(*report.arguments)
        else:
            self._leave(report)

    def _leave(self, report: Left) -> None:
        context, made = self._open.pop(report.number)
        if isinstance(made, Step):
            made.detail = report.detail
        if not report.failed:
            context.__exit__(None, None, None)
            return
        try:
            raise FledgeError("it failed in the process that worked")
        except FledgeError as error:
            # A context manager says by False that the exception is to be raised further.
            context.__exit__(type(error), error, error.__traceback__)
