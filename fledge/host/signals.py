"""Holds back the signals that end fledge, and knows what was written before one came."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that end fledge in order."""


class LateInterrupt(KeyboardInterrupt):
    """An interrupt that came when the output was complete. ``output`` is its path."""

    def __init__(self, output: Path, *arguments: object) -> None:
        super().__init__(*arguments)
        self.output = output


class PartialInterrupt(KeyboardInterrupt):
    """An interrupt that came when ``done`` of ``total`` jobs were done."""

    def __init__(self, done: int, total: int, *arguments: object) -> None:
        super().__init__(*arguments)
        self.done = done
        self.total = total


class GuestInterrupt(KeyboardInterrupt):
    """An interrupt that ended a guest."""


@contextmanager
def written(output: Path) -> Iterator[None]:
    """Turn an interrupt of the block into a `LateInterrupt`."""
    try:
        yield
    except LateInterrupt:
        raise
    except KeyboardInterrupt as interrupt:
        raise LateInterrupt(output, *interrupt.args) from interrupt


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back the signals that end fledge until the block has ended.

    Python handles signals in the main thread only; in other threads there is nothing to hold back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    handlers = {each: signal.getsignal(each) for each in SIGNALS}
    # One without a handler of Python's is ignored, or ends the process as it should.
    handled = {each: handler for each, handler in handlers.items() if callable(handler)}
    for each in handled:
        signal.signal(each, lambda number, _: held.append(number))
    try:
        yield
    finally:
        for each, handler in handled.items():
            signal.signal(each, handler)
        for number in held:
            signal.raise_signal(number)
