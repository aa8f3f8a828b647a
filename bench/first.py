"""Measure how soon fledge answers: help, completion, and the first line of a build.

    bench/first.py

The processor time of commands is the median of several runs. The first line of a build is what it
writes first to an empty terminal of 80 columns; its time is the elapsed time until then, and
depends on what else the machine does.
"""

from __future__ import annotations

import os
import pty
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import measure

from fledge.cli.app import COMMANDS
from tests.support import project

RUNS = 11

FLEDGE = (sys.executable, "-m", "fledge")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("| | processor time |")
        print("| --- | ---: |")
        for arguments in (("version",), ("--help",), *((each, "--help") for each in COMMANDS)):
            _show(" ".join(arguments), [_processor_time(folder, arguments) for _ in range(RUNS)])
        for line in ("fledge ", "fledge build --o", "fledge cache "):
            variables = {
                "_FLEDGE_COMPLETE": "complete_bash",
                "COMP_WORDS": line,
                "COMP_CWORD": str(line.count(" ")),
            }
            seconds = [_processor_time(folder, (), variables) for _ in range(RUNS)]
            _show(f'completion of "{line}"', seconds)
        project.make(folder)
        _show("first line of build, elapsed", [_first_line(folder) for _ in range(RUNS)])


def _show(title: str, seconds: list[float]) -> None:
    print(f"| {title} | {statistics.median(seconds):.3f} s |")


def _processor_time(
    folder: Path, arguments: tuple[str, ...], variables: dict[str, str] | None = None
) -> float:
    # typer asks how it was started for the name of the variable.
    script = Path(sys.executable).with_name("fledge")
    return measure((str(script), *arguments), folder, variables or {}).cpu_seconds


def _first_line(folder: Path) -> float:
    """Return the seconds until a build in ``folder`` writes something to its terminal."""
    terminal, descriptor = pty.openpty()
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "TERM": "xterm", "COLUMNS": "80"}
    start = time.perf_counter()
    process = subprocess.Popen(
        (*FLEDGE, "build"), cwd=folder, env=environment, stdout=descriptor, stderr=descriptor
    )
    os.close(descriptor)
    os.read(terminal, 1)
    seconds = time.perf_counter() - start
    try:
        while os.read(terminal, 1 << 16):
            pass
    except OSError:  # EIO: the other end is closed
        pass
    os.close(terminal)
    if process.wait():
        sys.exit("fledge build failed")
    return seconds


if __name__ == "__main__":
    main()
