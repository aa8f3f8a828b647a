"""Runs a function in a child process, and measures what it takes."""

from __future__ import annotations

import os
import pickle
import re
import resource
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")


def in_a_child(work: Callable[[], Result], seconds: int) -> tuple[Result, int]:
    """Return the result, and the most bytes of memory that the child took beside its parent's.

    A child that takes more than ``seconds`` of processor time, or raises an exception, fails.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts here (proc(5))
            before = _memory("VmRSS")
            result = work()
            with open(writing, "wb") as pipe:  # noqa: PTH123 -- a descriptor
                pickle.dump((result, _memory("VmHWM") - before), pipe)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123 -- a descriptor
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with {os.waitstatus_to_exitcode(status)}"
    measured: tuple[Result, int] = pickle.loads(data)  # noqa: S301 -- from our own child
    return measured


def _memory(field: str) -> int:
    """Return a field of /proc/self/status that is in kB, in bytes."""
    found = re.search(
        rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE
    )
    assert found
    return int(found[1]) << 10
