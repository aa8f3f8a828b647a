"""Reports of another process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fledge.operations.relay import Entered, Relay, Replay, Report
from fledge.report import Batch, Reporter, Step, Transfer


class Recorder(Reporter, Transfer, Batch):
    """Records every call; it is its own transfer and batch."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        step = Step(title)
        with self._block("step", title):
            yield step
        self.calls.append(step.detail)

    @contextmanager
    def transfer(self, label: str) -> Iterator[Transfer]:
        with self._block("transfer", label):
            yield self

    @contextmanager
    def work(self, label: str) -> Iterator[Transfer]:
        with self._block("work", label):
            yield self

    @contextmanager
    def batch(self, noun: str, count: int, size: int | None) -> Iterator[Batch]:
        with self._block("batch", noun, count, size):
            yield self

    def restart(self, done: int, total: int | None) -> None:
        self.calls.append(("restart", done, total))

    def advance(self, count: int) -> None:
        self.calls.append(("advance", count))

    def arrived(self, size: int) -> None:
        self.calls.append(("arrived", size))

    def finished(self) -> None:
        self.calls.append("finished")

    def note(self, message: str) -> None:
        self.calls.append(("note", message))

    def detail(self, message: str) -> None:
        self.calls.append(("detail", message))

    @contextmanager
    def _block(self, *name: object) -> Iterator[None]:
        self.calls.append(name)
        try:
            yield
        except BaseException:
            self.calls.append("failed")
            raise
        self.calls.append("ended")


def work(reporter: Reporter) -> None:
    with reporter.step("image") as step, reporter.batch("layers", 2, None) as batch:
        with reporter.transfer("one") as transfer:
            transfer.restart(0, 5)
            transfer.advance(5)
        batch.arrived(5)
        batch.finished()
        with reporter.work("unpack") as transfer:
            transfer.restart(1, None)
        step.detail = "two layers"
    reporter.note("a note")
    reporter.detail("a detail")
    with reporter.step("write"):
        raise ValueError("full")


def test_the_same_calls_arrive() -> None:
    here, there = Recorder(), Recorder()
    replay = Replay(there)
    with pytest.raises(ValueError, match="full"):
        work(here)
    with pytest.raises(ValueError, match="full"):
        work(Relay(replay.make))
    assert there.calls == here.calls


def test_bytes_are_relayed_in_few_reports_and_all_of_them() -> None:
    reports: list[Report] = []
    there = Recorder()
    with Relay(reports.append).transfer("large") as transfer:
        for _ in range(10_000):
            transfer.advance(3)
    replay = Replay(there)
    for report in reports:
        replay.make(report)
    advanced = [call[1] for call in there.calls if isinstance(call, tuple) and call[0] == "advance"]
    assert sum(advanced) == 30_000
    assert len(reports) < 1000


def test_what_a_dead_process_has_left_open_fails() -> None:
    there = Recorder()
    replay = Replay(there)
    replay.make(Entered(0, "step", ("image",)))
    replay.make(Entered(1, "transfer", ("one",)))
    replay.close()
    assert there.calls == [("step", "image"), ("transfer", "one"), "failed", "failed"]
