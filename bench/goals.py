"""Run the benchmarks that have a goal, and show which goals are reached.

    bench/goals.py --json goals.json [--runs N] [--tar2ext4 PATH]

A goal is a limit that a figure may not exceed; most are ratios of two rows of one benchmark. What
tar2ext4 is, ``bench/node.py --help`` says; without it, the goal beside it is left out.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from measure import CHECKOUT, figure, machine

Rows = Mapping[str, Mapping[str, Any]]
"""The rows of one benchmark as ``measure.py`` writes them to JSON, by name."""


class Goal(NamedTuple):
    """One limit."""

    title: str
    command: str
    """The benchmark with its arguments."""
    limit: float
    value: Callable[[Rows], float]
    """Finds the figure among the rows; KeyError where a peer was not measured."""


def ratio(name: str, peer: str) -> Callable[[Rows], float]:
    """The time of one row, in times of another: the median of the rounds."""

    def value(rows: Rows) -> float:
        pairs = zip(rows[name]["seconds"], rows[peer]["seconds"], strict=True)
        return float(statistics.median(ours / theirs for ours, theirs in pairs))

    return value


def seconds(name: str) -> Callable[[Rows], float]:
    """The median time of one row."""
    return lambda rows: float(statistics.median(rows[name]["seconds"]))


def cpu(name: str) -> Callable[[Rows], float]:
    """The median processor time of one row, in seconds."""
    return lambda rows: float(statistics.median(rows[name]["cpu_seconds"]))


def largest(key: str) -> Callable[[Rows], float]:
    """The largest of a further figure, of all rows that have it."""
    return lambda rows: max(row["extra"][key] for row in rows.values() if key in row["extra"])


def growth(key: str) -> Callable[[Rows], float]:
    """How many times as much a further figure is in the last row as in the first."""

    def value(rows: Rows) -> float:
        first, *_, last = (row["extra"][key] for row in rows.values() if key in row["extra"])
        return float(last / first)

    return value


CODECS = "initramfs --compressions zstd:3 lz4:9"
LOOK = f"look oci:{CHECKOUT / '.cache' / 'node'}:node"
"""The image of scripts/node-image, which the goals before it have made."""

GOALS = (
    Goal(
        "node image, full cache: times tar2ext4",
        "node",
        0.9,
        ratio("fledge build, full cache", "tar2ext4"),
    ),
    Goal(
        "writing: µs of the main thread per entry",
        "entries",
        12,
        largest("µs of the main thread per entry"),
    ),
    Goal(
        "writing: bytes of memory per entry",
        "entries",
        700,
        largest("bytes of memory per entry"),
    ),
    Goal(
        "writing: µs at 1,000,000 entries, times those at 10,000",
        "entries",
        1.1,
        growth("µs of the main thread per entry"),
    ),
    Goal("reading and applying: µs per entry", "layers", 6, largest("µs per entry")),
    Goal(
        "one large layer, empty cache, without writing: times the slower of inflating and hashing",
        "onelayer",
        1.25,
        largest("without writing, times the slower of inflating and hashing"),
    ),
    Goal("one mapped file edited: s", "edit", 0.7, seconds("build after an edit")),
    Goal("version: s of the processor", "first", 0.1, cpu("version")),
    Goal("--help: s of the processor", "first", 0.1, cpu("--help")),
    Goal("completion: s of the processor", "first", 0.1, cpu('completion of "fledge "')),
    Goal("first line of build: s", "first", 0.25, seconds("first line of build")),
    Goal(
        "initramfs of 50 MiB: times gcc, find, cpio, gzip",
        "initramfs",
        0.18,
        ratio("fledge build", "gcc, find, cpio, gzip"),
    ),
    Goal(
        "initramfs with zstd 3: times the codec alone",
        CODECS,
        1.1,
        ratio("zstd 3", "zstd 3, the codec alone"),
    ),
    Goal(
        "initramfs with lz4 9: times the codec alone",
        CODECS,
        1.1,
        ratio("lz4 9", "lz4 9, the codec alone"),
    ),
    Goal("inspect: times sha256sum", LOOK, 1.3, ratio("inspect", "sha256sum")),
    Goal("inspect: times openssl dgst", LOOK, 1.3, ratio("inspect", "openssl")),
    Goal("diff: times sha256sum", LOOK, 1.3, ratio("diff, one file", "sha256sum of both")),
    Goal("diff: times openssl dgst", LOOK, 1.3, ratio("diff, one file", "openssl of both")),
    Goal("verify: times sha256sum", LOOK, 1.3, ratio("verify", "sha256sum")),
    Goal("inspect PATH: s", LOOK, 0.3, seconds("inspect PATH")),
)

COMMANDS = tuple(dict.fromkeys(goal.command for goal in GOALS))
"""The benchmarks of all goals."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    parser.add_argument("--runs", metavar="N", help="of each row; default: that of each benchmark")
    parser.add_argument("--tar2ext4", type=Path, metavar="PATH")
    arguments = parser.parse_args()
    more = ["--runs", arguments.runs] if arguments.runs else []
    results = {command: run(command, more, arguments.tar2ext4) for command in COMMANDS}
    lines = [["goal", "limit", "measured", "of the limit", ""], ["---", *["---:"] * 4]]
    reached = []
    for goal in GOALS:
        rows = {row["name"]: row for row in results[goal.command]["rows"]}
        try:
            value = goal.value(rows)
        except KeyError as missing:
            lines.append([goal.title, f"{goal.limit:g}", f"{missing.args[0]}: no figure", "", ""])
            continue
        share, word = value / goal.limit, "reached" if value <= goal.limit else "not reached"
        lines.append([goal.title, f"{goal.limit:g}", figure(value), f"{share:.2f}", word])
        reached.append({"goal": goal.title, "limit": goal.limit, "value": value})
    print("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    if arguments.json:
        found = {"machine": machine(), "goals": reached, "benchmarks": results}
        arguments.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def run(command: str, more: Sequence[str], tar2ext4: Path | None) -> Any:
    """Run a benchmark with ``more`` options, and return what it writes as JSON."""
    program, *options = [*shlex.split(command), *more]
    if program == "node" and tar2ext4:
        options += ["--tar2ext4", str(tar2ext4)]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result"
        script = CHECKOUT / "bench" / f"{program}.py"
        done = subprocess.run(
            [sys.executable, script, *options, "--json", result], stdout=sys.stderr, check=False
        )
        if done.returncode:
            sys.exit(f"{command} failed")
        return json.loads(result.read_bytes())


if __name__ == "__main__":
    main()
