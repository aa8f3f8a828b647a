"""Functions in child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from fledge.host.children import Died, Returned, Send, Sent, Started, run

pytestmark = pytest.mark.slow


def double(number: int, send: Send) -> int:
    send(f"doubling {number}")
    return 2 * number


def test_results_and_what_children_send() -> None:
    events = [event for event in run([partial(double, each) for each in range(5)], 2) if event]
    returned = {event.number: event.value for event in events if isinstance(event, Returned)}
    assert returned == {number: 2 * number for number in range(5)}
    assert {event.value for event in events if isinstance(event, Sent)} == {
        f"doubling {number}" for number in range(5)
    }
    assert [event.number for event in events if isinstance(event, Started)] == [0, 1, 2, 3, 4]


def test_no_more_than_so_many_at_a_time() -> None:
    running = most = 0
    for event in run([partial(double, each) for each in range(7)], 3):
        running += isinstance(event, Started)
        running -= isinstance(event, Returned)
        most = max(most, running)
    assert (running, most) == (0, 3)


def die(send: Send) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(send: Send) -> None:
    raise ValueError("a function that is not prepared for this")


@pytest.mark.parametrize(
    ("function", "how"), [(die, "signal 9 killed it"), (fail, "it ended with 1")]
)
def test_a_child_that_dies_leaves_the_others(function: object, how: str) -> None:
    functions = [partial(double, 1), function, partial(double, 2)]
    events = list(run(functions, 1))  # type: ignore[arg-type]
    assert Died(1, how) in events
    assert [event.value for event in events if isinstance(event, Returned)] == [2, 4]


def wait_for_ever(note: Path, send: Send) -> None:
    try:
        send(os.getpid())
        while True:
            time.sleep(1)
    finally:
        note.write_text("cleaned up")


def test_closing_ends_children_in_order(tmp_path: Path) -> None:
    note = tmp_path / "note"
    with closing(run([partial(wait_for_ever, note)], 1)) as events:
        process = next(event.value for event in events if isinstance(event, Sent))
    assert note.read_text() == "cleaned up"
    assert not Path(f"/proc/{process}").exists()


ORPHANS = """
import sys
from functools import partial
from pathlib import Path
from fledge.host.children import Sent, run
from tests.host.test_children import wait_for_ever
for event in run([partial(wait_for_ever, Path(each)) for each in sys.argv[1:]], 2):
    if isinstance(event, Sent):
        print(event.value, flush=True)
"""


def test_children_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    notes = [tmp_path / "one", tmp_path / "two"]
    with subprocess.Popen(
        [sys.executable, "-c", ORPHANS, *notes],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as parent:
        assert parent.stdout
        processes = [parent.stdout.readline().strip() for _ in notes]
        parent.kill()
    for process in processes:
        while Path(f"/proc/{process}").exists():
            time.sleep(0.01)  # the limit of the test ends an endless wait
    assert [note.read_text() for note in notes] == ["cleaned up"] * 2
