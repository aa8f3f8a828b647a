"""Holds back the signals that end fledge."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back the signals that end fledge until the block has ended.

    Python handles signals in the main thread only; in other threads there is nothing to hold back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    handlers = {each: signal.getsignal(each) for each in _ENDING_SIGNALS}
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
