"""A function that several threads map over items."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from fledge.host.parallel import ahead, ordered


def test_order() -> None:
    """Results come in the order of the items, whichever is ready first."""

    def work(number: int) -> int:
        time.sleep(0.01 if number % 3 else 0)
        return number * number

    assert list(ordered(work, range(50), threads=4, window=8)) == [n * n for n in range(50)]


def test_nothing() -> None:
    assert list(ordered(str, (), threads=2, window=4)) == []


def test_window() -> None:
    """No more items are taken than may wait."""
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = ordered(str, items(), threads=2, window=5)
    for number in range(20):
        assert next(results) == str(number)
        assert len(taken) <= number + 6
    results.close()
    assert len(taken) < 30


def test_failure() -> None:
    """It is raised when its turn has come, and no further item is worked on for long."""
    done: list[int] = []

    def work(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        done.append(number)
        return number

    found = []
    with pytest.raises(ValueError, match="three"):
        for each in ordered(work, range(1000), threads=2, window=4):
            found.append(each)
    assert found == [0, 1, 2]
    assert len(done) < 20


def test_failure_of_the_items() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(ordered(str, items(), threads=2, window=1))


def test_threads_end() -> None:
    before = threading.active_count()
    results = ordered(str, range(100), threads=4, window=8)
    next(results)
    results.close()
    assert threading.active_count() <= before


@pytest.mark.slow
def test_interrupt() -> None:
    """A signal ends the wait for a result that does not come."""
    release = threading.Event()
    results = ordered(lambda _: release.wait(), (1,), threads=1, window=1)
    timer = threading.Timer(0.1, signal.raise_signal, [signal.SIGINT])
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            next(results)
    finally:
        release.set()


def test_ahead() -> None:
    """Items come in their order, from one other thread."""
    threads = set()

    def items() -> Iterator[int]:
        for number in range(20):
            threads.add(threading.current_thread())
            yield number

    assert list(ahead(items(), batch=3, window=2)) == list(range(20))
    assert len(threads) == 1
    assert threading.current_thread() not in threads
    assert list(ahead((), batch=3, window=2)) == []


def test_ahead_takes_no_more_than_the_window() -> None:
    taken: list[int] = []
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            for number in range(100):
                taken.append(number)
                yield number
        finally:
            closed.set()

    results = ahead(items(), batch=3, window=2)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    results.close()
    assert closed.wait(60)
    assert len(taken) <= 3 * (2 + 2)


def test_a_failure_comes_after_the_batches_before_it() -> None:
    def items() -> Iterator[int]:
        yield from range(7)
        raise ValueError("the eighth")

    got = []
    with pytest.raises(ValueError, match="the eighth"):
        for item in ahead(items(), batch=3, window=2):
            got.append(item)
    assert got == [0, 1, 2, 3, 4, 5]
