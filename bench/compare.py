"""Measure two commits side by side, in turn: A B A B. Exits 1 if B is slower in anything.

    bench/compare.py main HEAD
    bench/compare.py main .                           what is not committed yet
    bench/compare.py main HEAD --only entries --only 'rootfs oci:DIR:TAG'

A and B are commits, or folders with a checkout. The benchmarks are those of this checkout, and of
these only fledge, so that older commits are measured alike. A commit whose dependencies differ gets
an environment of its own. Something is slower if it was so in every round, by more than --noise.
Exits 2 if B cannot run a benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import tomli
from goals import COMMANDS
from measure import CHECKOUT, figure

FIGURES = {"seconds": "s", "cpu_seconds": "s of the processor", "peak_memory": "bytes"}
"""What of each row is compared, besides its further figures; with the unit."""


@dataclass(frozen=True)
class Side:
    """One of the two commits."""

    name: str
    checkout: Path
    python: str

    def measure(self, command: str, folder: Path) -> dict[tuple[str, str], float] | None:
        """Run a benchmark once; return each figure by row and unit, or None if it failed."""
        program, *options = shlex.split(command)
        result = folder / "result"
        done = subprocess.run(
            [
                *(sys.executable, str(CHECKOUT / "bench" / f"{program}.py"), *options),
                *("--runs", "1", "--no-peers", "--json", str(result)),
            ],
            env={**os.environ, "BENCH_CHECKOUT": str(self.checkout), "BENCH_PYTHON": self.python},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            print(f"{self.name} cannot run {command}:\n{done.stderr}", file=sys.stderr)
            return None
        found = {}
        for row in json.loads(result.read_bytes())["rows"]:
            values = {unit: row[key][0] for key, unit in FIGURES.items() if row[key]}
            for unit, value in (values | row["extra"]).items():
                found[row["name"], unit] = value
        return found


@dataclass
class Compared:
    """One figure of both sides, with one pair for each round."""

    pairs: list[tuple[float, float]] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [b / a for a, b in self.pairs]

    def verdict(self, noise: float) -> str:
        if min(self.ratios) > 1 + noise:
            return "slower"
        return "faster" if max(self.ratios) < 1 / (1 + noise) else ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="this benchmark alone, with arguments if they are quoted; may be repeated",
    )
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--noise", type=float, default=0.05, help="default 0.05, which is 5 %%")
    arguments = parser.parse_args()
    slower = False
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides = [stack.enter_context(_side(name, folder)) for name in (arguments.a, arguments.b)]
        for command in arguments.only or COMMANDS:
            compared = _compare(sides, command, arguments.rounds, folder)
            print(f"\n## {command}\n\n{_table(compared, arguments.noise)}", flush=True)
            slower |= any(each.verdict(arguments.noise) == "slower" for each in compared.values())
    sys.exit(1 if slower else 0)


@contextmanager
def _side(name: str, folder: Path) -> Iterator[Side]:
    """Check a commit out and prepare it; a folder is taken as it is."""
    with ExitStack() as stack:
        checkout = Path(name)
        if not checkout.is_dir():
            checkout = Path(tempfile.mkdtemp(dir=folder))
            _git("worktree", "add", "--quiet", "--detach", str(checkout), name)
            stack.callback(_git, "worktree", "remove", "--force", str(checkout))
        python = sys.executable
        if _dependencies(checkout) != _dependencies(CHECKOUT):
            environment = Path(tempfile.mkdtemp(dir=folder))
            subprocess.run([sys.executable, "-m", "venv", environment], check=True)
            python = str(environment / "bin" / "python")
            install = ("-m", "pip", "install", "--quiet", str(checkout))
            subprocess.run([python, *install], check=True)
        # So that no run has to.
        compiling = ("-m", "compileall", "-q", str(checkout / "fledge"))
        subprocess.run([python, *compiling], check=True)
        yield Side(name, checkout.resolve(), python)


def _git(*arguments: str) -> None:
    if subprocess.run(["git", "-C", CHECKOUT, *arguments], check=False).returncode:
        sys.exit(f"git {arguments[0]} failed")


def _dependencies(checkout: Path) -> object:
    return tomli.loads((checkout / "pyproject.toml").read_text())["project"]["dependencies"]


def _compare(
    sides: list[Side], command: str, rounds: int, folder: Path
) -> dict[tuple[str, str], Compared]:
    """Return the figures that both sides have; none if A cannot run the benchmark."""
    compared: dict[tuple[str, str], Compared] = {}
    for _ in range(rounds):
        a, b = (side.measure(command, folder) for side in sides)
        if b is None:
            sys.exit(2)
        if a is None:
            return {}
        for key in a.keys() & b.keys():
            if a[key] > 0 and b[key] > 0:
                compared.setdefault(key, Compared()).pairs.append((a[key], b[key]))
    return dict(sorted(compared.items()))


def _table(compared: dict[tuple[str, str], Compared], noise: float) -> str:
    lines = [["", "", "A", "B", "B / A", "lowest to highest", ""], ["---"] * 2 + ["---:"] * 5]
    for (row, unit), each in compared.items():
        a, b = (statistics.median(values) for values in zip(*each.pairs, strict=True))
        ratios = each.ratios
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        middle = f"{statistics.median(ratios):.2f}"
        lines.append([row, unit, figure(a), figure(b), middle, spread, each.verdict(noise)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
