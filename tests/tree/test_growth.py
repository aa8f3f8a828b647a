"""A file that one thread writes and another reads."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from fledge.errors import MalformedError
from fledge.tree.budget import MIN_MEMORY, SIZE_PER_MEMORY, Budget
from fledge.tree.growth import STRETCH, Growth


def meanwhile(write: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=write)
    thread.start()
    return thread


def test_what_is_there_is_not_waited_for() -> None:
    growth = Growth()
    growth.advance(10)
    assert growth.reach(10) == 10
    assert Growth(7, complete=True).reach(8) == 7


def test_a_reader_waits_until_the_writer_is_ahead() -> None:
    growth = Growth()

    def write() -> None:
        for size in range(0, 3 * STRETCH, STRETCH // 4):
            growth.advance(size)

    writer = meanwhile(write)
    assert growth.reach(1) > STRETCH
    writer.join()


def test_a_reader_is_not_left_waiting_by_a_writer_that_ends() -> None:
    growth = Growth()
    growth.advance(10)
    writer = meanwhile(growth.end)
    assert growth.reach(11) == 10
    writer.join()


def test_a_budget_waits_for_the_input_that_it_depends_on() -> None:
    growth = Growth()
    budget = Budget()
    budget.follow(growth)

    def write() -> None:
        for size in range(0, 3 * STRETCH, STRETCH // 2):
            growth.advance(size)
        growth.advance(3 * STRETCH)
        growth.end()

    writer = meanwhile(write)
    most = MIN_MEMORY + 3 * STRETCH // SIZE_PER_MEMORY
    budget.charge(most)
    with pytest.raises(MalformedError, match="more than 166"):
        budget.charge(1)
    writer.join()
    another = Growth(2 * SIZE_PER_MEMORY, complete=True)
    budget.follow(another)
    budget.charge(1)
    with pytest.raises(MalformedError):
        budget.charge(1)
