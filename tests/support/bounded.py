"""Runs a function in a child process, and measures what it takes."""

from __future__ import annotations

import os
import pickle
import resource
import traceback
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def in_a_child(work: Callable[[], Result], seconds: int) -> tuple[Result, int]:
    """Return the result, and the most bytes of memory that the child had, with those of its parent.

    A child that takes more than ``seconds`` of processor time, or raises an exception, fails.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            with open(writing, "wb") as pipe:  # noqa: PTH123 -- a descriptor
                pickle.dump(work(), pipe)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123 -- a descriptor
        data = pipe.read()
    _, status, usage = os.wait4(child, 0)
    assert status == 0, f"the child ended with {os.waitstatus_to_exitcode(status)}"
    return pickle.loads(data), usage.ru_maxrss << 10  # noqa: S301 -- from our own child
