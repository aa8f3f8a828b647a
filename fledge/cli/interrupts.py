"""Ends fledge by a signal, or because nobody reads its output: it cleans up and says so."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from fledge.cli.messages import print_error
from fledge.host.signals import SIGNALS


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into `KeyboardInterrupt` in the block, which cleans up.

    In a thread other than the main one, where Python handles no signals, nothing changes.
    """
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
    # Keep ignoring a signal that nohup made this process ignore.
    handled = {number: each for number, each in handlers.items() if each != signal.SIG_IGN}
    try:
        for number in handled:
            signal.signal(number, _interrupt)
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(number)


def end_unwritable(error: Exception) -> None:
    """End fledge because of an `OutputError`.

    If the reader of the output has gone, as with ``| head``, die of SIGPIPE as other programs do.
    """
    cause = error.__cause__
    if isinstance(cause, BrokenPipeError):
        die_of(signal.SIGPIPE)
    problem = (getattr(cause, "strerror", None) or str(cause)).lower()
    print_error(f"standard output could not be written: {problem}")
    raise SystemExit(1)


def die_of(number: int) -> None:
    """Kill this process with a signal, so that the shell sees which one."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
