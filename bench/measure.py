"""Runs a command and says what it took."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    seconds: float
    cpu_seconds: float
    """Of all its processes, by user and kernel: what a busy machine does not change."""
    peak_memory: int
    """Bytes of the largest single process."""
    said: str
    """Standard error."""


def measure(command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> Run:
    """Run a command to its end, which must be a good one.

    It begins when the disk has what others wrote, which it would have to wait for otherwise.
    Python may keep the bytecode of a checkout, as pip does of what it installs.
    """
    os.sync()
    with (folder / "stderr").open("w+b") as stderr:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "", **variables},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        stderr.seek(0)
        said = stderr.read().decode()
    if process.returncode:
        sys.exit(f"{command[0]} failed with {process.returncode}:\n{said}")
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Run(seconds, cpu_seconds, usage.ru_maxrss * 1024, said)


def mib(size: float) -> str:
    return f"{size / (1 << 20):.1f} MiB"
