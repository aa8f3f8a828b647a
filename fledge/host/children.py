"""Runs functions in child processes, a few at a time.

Children are forked, so a function and its arguments need no pickling, and the memory of modules
that the parent has imported is shared. Only what a child sends, returns or raises is pickled. Fork
while no other thread runs: a lock that a thread holds is never released in the child.

No child outlives its parent. An interrupt of the parent ends the children in order, and if the
parent is killed, they notice that a pipe from it has closed. They ignore Ctrl-C and SIGHUP, which a
terminal sends to all processes: the parent decides.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, NoReturn

import msgspec

from fledge.host.signals import SIGNALS, uninterrupted

TICK = 0.125
"""Seconds between two signs of life while no child has anything to say."""

GRACE_PERIOD = 10.0
"""Seconds that children get to clean up after an interrupt, before they are killed."""

Send = Callable[[object], None]
"""Sends an object to the parent. Any thread of the child may call it."""

Function = Callable[[Send], object]


class Started(msgspec.Struct, frozen=True):
    """A child has begun with a function."""

    number: int
    """The position of the function in the sequence."""


class Sent(msgspec.Struct, frozen=True):
    """A child has sent an object."""

    number: int
    value: Any


class Returned(msgspec.Struct, frozen=True):
    """A child has ended, and returned an object."""

    number: int
    value: Any


class Died(msgspec.Struct, frozen=True):
    """A child has ended without a result: it was killed, or its function raised an exception."""

    number: int
    how: str
    """Such as ``signal 9 killed it``."""


Event = Started | Sent | Returned | Died


class _Child(msgspec.Struct, frozen=True):
    number: int
    process: ForkProcess
    receiver: Connection


def run(functions: Sequence[Function], processes: int) -> Generator[Event | None]:
    """Run each function in a child of its own, ``processes`` at a time, in their order.

    Yields what happens, and None at least every `TICK` seconds. Closing the iterator, or an
    exception, ends the children that still run.
    """
    waiting = list(enumerate(functions))[::-1]
    running: dict[Connection, _Child] = {}
    lifeline, held_open = os.pipe()
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                number, function = waiting.pop()
                with uninterrupted():
                    child = _start(number, function, lifeline, held_open)
                    running[child.receiver] = child
                yield Started(number)
            for receiver in wait(list(running), TICK):
                assert isinstance(receiver, Connection)  # noqa: S101 -- wait returns what it got
                event = _receive(running[receiver])
                if isinstance(event, Returned | Died):
                    with uninterrupted():
                        _reap(running.pop(receiver))
                yield event
            yield None
    finally:
        with uninterrupted():
            _end(list(running.values()))
            os.close(lifeline)
            os.close(held_open)


def _start(number: int, function: Function, lifeline: int, held_open: int) -> _Child:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    # The child must not run a handler of the parent before it has its own.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        arguments = (number, function, sender, (lifeline, held_open), before)
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    sender.close()
    return _Child(number, process, receiver)


def _receive(child: _Child) -> Event:
    try:
        event: Event = child.receiver.recv()
        return event
    except (EOFError, OSError):
        child.process.join()
        code = child.process.exitcode or 0
        how = f"signal {-code} killed it" if code < 0 else f"it ended with {code}"
        return Died(child.number, how)


def _reap(child: _Child) -> None:
    child.receiver.close()
    child.process.join(GRACE_PERIOD)  # it has nothing left to do
    if child.process.exitcode is None:
        child.process.kill()
        child.process.join()
    child.process.close()


def _end(children: Sequence[_Child]) -> None:
    for child in children:
        child.process.terminate()
    deadline = time.monotonic() + GRACE_PERIOD
    for child in children:
        # A child that has something to say must not wait for a parent that does not listen.
        child.receiver.close()
        child.process.join(max(0, deadline - time.monotonic()))
        if child.process.exitcode is None:
            child.process.kill()
        child.process.join()
        child.process.close()


def _work(
    number: int,
    function: Function,
    sender: Connection,
    pipe: tuple[int, int],
    mask: set[signal.Signals],
) -> NoReturn:
    """Be the child. Ends the process without the parent's clean-up, which is not for the child."""
    lifeline, held_open = pipe
    try:
        os.close(held_open)
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _interrupt)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
        lock = threading.Lock()

        def send(event: Event) -> None:
            with lock, suppress(BrokenPipeError):  # a parent that is gone ends this process
                sender.send(event)

        send(Returned(number, function(lambda value: send(Sent(number, value)))))
    except BaseException:
        os._exit(1)
    os._exit(0)


def _interrupt(number: int, frame: object) -> NoReturn:
    # Once: an interrupt of the clean-up would leave a part of it undone.
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


def _end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)  # returns when the parent has gone, which alone could write to it
    os.kill(os.getpid(), signal.SIGTERM)
