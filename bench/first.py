"""Measure how soon fledge answers: help, completion, and the first line of a build.

The processor time of commands says most. The first line of a build is what it
writes first to an empty terminal of 80 columns; its time is the elapsed time until then, and
depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from measure import MEASURED, PYTHON, Row, Run, Way, in_turn, main, measure

from fledge.cli.app import COMMANDS
from tests.support import project


def benchmark(folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    # typer asks how it was started for the name of the variable.
    script = str(Path(PYTHON).with_name("fledge"))
    ways = [
        Way(" ".join(options), partial(measure, (script, *options), folder))
        for options in (("version",), ("--help",), *((each, "--help") for each in COMMANDS))
    ]
    for line in ("fledge ", "fledge build --o", "fledge cache "):
        variables = {
            "_FLEDGE_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(line.count(" ")),
        }
        ways.append(Way(f'completion of "{line}"', partial(measure, (script,), folder, variables)))
    project.make(folder)
    ways.append(Way("first line of build", lambda: _first_line(folder)))
    yield from in_turn(arguments, ways)


def _first_line(folder: Path) -> Run:
    """Measure the time until a build in ``folder`` writes something to its terminal."""
    terminal, descriptor = pty.openpty()
    environment = {
        **os.environ,
        **{"PYTHONDONTWRITEBYTECODE": "", "PYTHONPATH": str(MEASURED)},
        **{"TERM": "xterm", "COLUMNS": "80"},
    }
    start = time.perf_counter()
    process = subprocess.Popen(
        (PYTHON, "-m", "fledge", "build"),
        cwd=folder,
        env=environment,
        stdout=descriptor,
        stderr=descriptor,
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
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit("fledge build failed")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, "")


if __name__ == "__main__":
    main(benchmark, __doc__, runs=11)
