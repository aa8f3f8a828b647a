"""Runs benchmarks: measures commands, prints a table and writes JSON.

A benchmark is a module in this folder, here ``bench/example.py``. Its function yields a row for
each thing measured; ``main`` does the rest:

    \"\"\"What it measures, as --help shows it.\"\"\"

    def benchmark(folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
        (folder / "fledge.toml").write_text(CONFIG)
        yield from in_turn(arguments, [
            Way("fledge build", lambda: fledge(folder, "build", "-o", "image"), folder / "image"),
            Way("mkfs.ext4", lambda: measure(MKFS, folder), peer=version("mkfs.ext4", "-V")),
        ])

    if __name__ == "__main__":
        main(benchmark, __doc__)

``folder`` is empty and is removed. A benchmark with options of its own gives ``main`` a function
that adds them to the parser; with all left out it must run. The names of the rows are what
``compare.py`` and ``goals.py`` know them by, so they hold neither figures nor versions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
MEASURED = Path(os.environ.get("BENCH_CHECKOUT", CHECKOUT))
"""The checkout whose fledge is measured: this one, unless ``compare.py`` names another."""
PYTHON = os.environ.get("BENCH_PYTHON", sys.executable)
"""The interpreter that runs that fledge."""

RUNS = 5


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


@dataclass(frozen=True)
class Row:
    """What one thing took. The table and the JSON have a row for each."""

    name: str
    runs: Sequence[Run] = ()
    size: int | None = None
    """Bytes of its output; None where it has none."""
    peer: str = ""
    """The version of another program; empty for fledge itself."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """Further figures, by the title of their column, which has the unit."""

    @property
    def seconds(self) -> float:
        """The median of the elapsed times."""
        return statistics.median(run.seconds for run in self.runs)

    @property
    def cpu_seconds(self) -> float:
        """The median of the processor times."""
        return statistics.median(run.cpu_seconds for run in self.runs)

    @property
    def peak_memory(self) -> float:
        """The median of the peaks of memory, in bytes."""
        return statistics.median(run.peak_memory for run in self.runs)


@dataclass(frozen=True)
class Way:
    """One of several ways to do something, which are run in turn."""

    name: str
    run: Callable[[], Run]
    output: Path | None = None
    """The file that it writes. An earlier one is removed before each run."""
    peer: str = ""
    """As in ``Row``."""


def measure(
    command: Sequence[str], folder: Path, variables: Mapping[str, str] | None = None
) -> Run:
    """Run a command in ``folder``, and exit if it fails.

    Earlier writes are synced first, so that the command does not wait for them. Python may store
    the bytecode of a checkout, as pip does for installed packages.
    """
    os.sync()
    environment = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPATH": str(MEASURED), **(variables or {})}
    with (folder / "stderr").open("w+b") as file:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment},
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


def fledge(folder: Path, *arguments: str, cache: str = "cache") -> Run:
    """Measure a command of fledge in ``folder``, with a cache there."""
    variables = {"FLEDGE_CACHE_DIR": str(folder / cache)}
    return measure([PYTHON, "-m", "fledge", *arguments], folder, variables)


def in_turn(arguments: argparse.Namespace, ways: Iterable[Way]) -> list[Row]:
    """Run each way, then each again, so that a change of load affects them alike."""
    taken = [way for way in ways if arguments.peers or not way.peer]
    runs: list[list[Run]] = [[] for _ in taken]
    sizes: list[int | None] = [None for _ in taken]
    for _ in range(arguments.runs):
        for number, way in enumerate(taken):
            if way.output:
                way.output.unlink(missing_ok=True)
            runs[number].append(way.run())
            sizes[number] = way.output.stat().st_size if way.output else None
    return [
        Row(way.name, runs[number], sizes[number], way.peer) for number, way in enumerate(taken)
    ]


def version(*command: str) -> str:
    """Return the version that a program prints, such as 1.47.0."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        sys.exit(f"{command[0]} is missing; run scripts/test-tools")
    found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    if not found:
        sys.exit(f"{' '.join(command)} prints no version")
    return found[0]


def add_image(parser: argparse.ArgumentParser) -> None:
    """Add the argument that ``image`` reads."""
    parser.add_argument(
        "image", nargs="?", help="oci:DIR:TAG; default: that of scripts/debian-image"
    )


def image(arguments: argparse.Namespace) -> tuple[Path, str]:
    """Return the OCI layout and the tag of the image that the command line names."""
    if not arguments.image:
        return made_image("debian"), "debian"
    transport, path, tag = arguments.image.split(":")
    if transport != "oci":
        sys.exit(f"{arguments.image}: must be oci:DIR:TAG")
    return Path(path).absolute(), tag


def made_image(tag: str) -> Path:
    """Return the OCI layout of ``scripts/TAG-image``, which is made unless it is there."""
    path = CHECKOUT / ".cache" / tag
    subprocess.run([CHECKOUT / "scripts" / f"{tag}-image", path], check=True, stdout=sys.stderr)
    return path


def write_config(folder: Path, image: str, more: str = "", name: str = "fledge.toml") -> None:
    """Write the configuration of an image, with further lines, and an agent."""
    (folder / "agent").write_text("#!/bin/sh\n")
    (folder / name).write_text(f"""\
version = "1"
strategy = "oci_rootfs"
[agent]
source_strategy = "local"
path = "agent"
[source]
image = "{image}"
{more}""")


def main(
    benchmark: Callable[[Path, argparse.Namespace], Iterator[Row]],
    description: str | None,
    add_arguments: Callable[[argparse.ArgumentParser], object] = lambda _: None,
    *,
    runs: int = RUNS,
) -> None:
    """Run a benchmark as the command line says, print its table, and write its JSON."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=runs, help=f"of each row; default {runs}")
    parser.add_argument(
        "--no-peers", dest="peers", action="store_false", help="run fledge alone, no other program"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    add_arguments(parser)
    arguments = parser.parse_args()
    cache = CHECKOUT / ".cache"
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as name:
        rows = list(benchmark(Path(name), arguments))
    here = machine()
    print(f"{arguments.runs} runs, medians; {here['cores']} cores, {here['processor']}\n")
    print(markdown(rows))
    if arguments.json:
        found = {
            "benchmark": Path(sys.argv[0]).stem,
            "machine": here,
            "peers": {row.name: row.peer for row in rows if row.peer},
            "rows": [_as_json(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def _as_json(row: Row) -> dict[str, object]:
    """A row without what its commands printed."""
    return {
        "name": row.name,
        "seconds": [run.seconds for run in row.runs],
        "cpu_seconds": [run.cpu_seconds for run in row.runs],
        "peak_memory": [run.peak_memory for run in row.runs],
        "size": row.size,
        "extra": dict(row.extra),
    }


def machine() -> dict[str, object]:
    """Where and what is measured."""
    information = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", information, re.MULTILINE)
    git = ["git", "-C", str(MEASURED), "describe", "--always", "--dirty", "--abbrev=12"]
    described = subprocess.run(git, capture_output=True, text=True, check=False)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": model[1] if model else platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": described.stdout.strip(),
    }


def markdown(rows: Sequence[Row]) -> str:
    """Return a table with the columns that any of the rows has something in."""
    columns: dict[str, Callable[[Row], str]] = {}
    if any(row.runs for row in rows):
        columns |= {
            "time": lambda row: f"{row.seconds:.2f} s" if row.runs else "",
            "processor time": lambda row: f"{row.cpu_seconds:.2f} s" if row.runs else "",
            "peak memory": lambda row: mib(row.peak_memory) if row.runs else "",
        }
    if any(row.size is not None for row in rows):
        columns["size"] = lambda row: "" if row.size is None else mib(row.size)
    for title in dict.fromkeys(title for row in rows for title in row.extra):
        columns[title] = lambda row, title=title: figure(row.extra.get(title))  # type: ignore[misc]
    lines = [["", *columns], ["---", *("---:" for _ in columns)]]
    lines += [
        [f"{row.name} {row.peer}".rstrip(), *(cell(row) for cell in columns.values())]
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def figure(value: float | None) -> str:
    """Format a number with three digits that say something; None is empty."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def mib(size: float) -> str:
    """Format a number of bytes in MiB."""
    return f"{size / (1 << 20):.1f} MiB"
