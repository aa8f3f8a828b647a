"""Runs functions and generators in threads, and keeps the order."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, wait
from contextlib import closing
from itertools import islice, repeat
from queue import SimpleQueue
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

POLL_INTERVAL = 0.2
"""Seconds of one wait: one that begins just after Ctrl-C would not be interrupted."""
GRACE_PERIOD = 0.5
"""Seconds that threads get to clean up after another one failed."""


def ordered(work: Callable[[A], B], items: Iterable[A], threads: int, window: int) -> Generator[B]:
    """Yield what ``work`` returns for each item, in the order of the items.

    At most ``window`` items are taken and not yet yielded. Raises what ``work`` raises, when its
    turn has come. A call that still runs then goes on in the background; neither Ctrl-C nor the
    end of the process waits for it.
    """
    jobs: SimpleQueue[tuple[Future[B], A] | None] = SimpleQueue()
    stop = threading.Event()

    def run() -> None:
        while (job := jobs.get()) and not stop.is_set():
            future, item = job
            try:
                future.set_result(work(item))
            except BaseException as error:
                future.set_exception(error)

    workers = [threading.Thread(target=run, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    pending: deque[Future[B]] = deque()
    try:
        for item in items:
            pending.append(Future())
            jobs.put((pending[-1], item))
            if len(pending) >= window:
                yield _result(pending.popleft())
        while pending:
            yield _result(pending.popleft())
    finally:
        stop.set()
        for _ in workers:
            jobs.put(None)
        deadline = time.monotonic() + GRACE_PERIOD
        for worker in workers:
            worker.join(max(0, deadline - time.monotonic()))


def ahead(items: Iterable[A], batch: int, window: int) -> Generator[A]:
    """Yield the items, which a thread of its own takes while the caller uses earlier ones.

    It hands them over in batches, of which at most ``window`` are taken and not yet yielded. Raises
    what taking an item raises, once the batches before it are yielded. Stops as `ordered`.
    """
    taken = iter(items)
    batches = ordered(lambda _: list(islice(taken, batch)), repeat(None), 1, window)
    with closing(batches):
        for each in batches:
            if not each:
                return
            yield from each


def _result(future: Future[B]) -> B:
    while not wait([future], POLL_INTERVAL).done:
        pass
    return future.result()
