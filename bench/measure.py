"""Runs commands and measures their time and memory."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """The measurement of one run."""

    seconds: float
    """Elapsed time."""
    cpu_seconds: float
    """User and system time of all its processes, which other load hardly affects."""
    peak_memory: int
    """Peak memory of the largest process, in bytes."""
    stderr: str
    """What it wrote to standard error."""


def measure(command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> Run:
    """Run a command in ``folder``, and exit if it fails.

    Earlier writes are synced first, so that the command does not wait for them. Python may store
    the bytecode of a checkout, as pip does for installed packages.
    """
    os.sync()
    with (folder / "stderr").open("w+b") as file:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "", **variables},
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        file.seek(0)
        stderr = file.read().decode()
    if process.returncode:
        sys.exit(f"{command[0]} failed with {process.returncode}:\n{stderr}")
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Run(seconds, cpu_seconds, usage.ru_maxrss * 1024, stderr)


def compare(
    commands: Mapping[str, Sequence[str]], folder: Path, variables: Mapping[str, str], runs: int
) -> None:
    """Measure commands that each write ``image``, in turn, and print a table of the medians."""
    measured: dict[str, list[Run]] = {title: [] for title in commands}
    sizes: dict[str, int] = {}
    for _ in range(runs):
        for title, command in commands.items():
            (folder / "image").unlink(missing_ok=True)
            measured[title].append(measure(command, folder, variables))
            sizes[title] = (folder / "image").stat().st_size
    print("| | time | processor time | peak memory | size |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for title, each in measured.items():
        cells = [
            title,
            f"{statistics.median(run.seconds for run in each):.2f} s",
            f"{statistics.median(run.cpu_seconds for run in each):.2f} s",
            mib(statistics.median(run.peak_memory for run in each)),
            mib(sizes[title]),
        ]
        print(f"| {' | '.join(cells)} |")


def mib(size: float) -> str:
    """Format a number of bytes in MiB."""
    return f"{size / (1 << 20):.1f} MiB"
