"""Build fifty plugins over five base images: all at once, one after the other, and in threads.

Needs Debian's docker-registry. Each way runs once and begins with an empty cache. The memory of
all is the proportional set size of all processes together, which counts a shared page once and
leaves out the page cache.
"""

from __future__ import annotations

import argparse
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from measure import PYTHON, Row, main, measure

from tests.support import images, project, registry, tars

BASES = 5
INTERVAL = 0.02
"""Seconds between two looks at the memory."""

THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import fledge
fledge.tune_for_builds()
session = fledge.Session.default()
def build(toml):
    fledge.build(toml, toml.with_name("out.img"), session=session)
with ThreadPoolExecutor(int(sys.argv[1])) as pool:
    list(pool.map(build, sorted(Path("plugins").glob("*/fledge.toml"))))
"""


@dataclass
class Memory:
    """The memory of all processes below this one, as it was seen from time to time."""

    peak: int = 0
    stopped: bool = False

    def watch(self) -> None:
        while not self.stopped:
            self.peak = max(self.peak, sum(map(proportional_size, descendants())))
            time.sleep(INTERVAL)


@contextmanager
def watched(leaving_out: set[int]) -> Iterator[Memory]:
    memory = Memory()
    ignored.update(leaving_out)
    thread = threading.Thread(target=memory.watch)
    thread.start()
    try:
        yield memory
    finally:
        memory.stopped = True
        thread.join()


ignored: set[int] = set()


def descendants() -> list[int]:
    found, pending = [], [os.getpid()]
    while pending:
        parent = pending.pop()
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                children = [int(each) for each in (task / "children").read_text().split()]
                pending += [each for each in children if each not in ignored]
        except OSError:
            continue  # it has ended
        found.append(parent)
    return found[1:]


def proportional_size(process: int) -> int:
    """Return the bytes of a process in memory; of shared pages, its share."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    sizes = dict(line.split(":", 1) for line in lines[1:])
    return int(sizes["Pss"].split()[0]) << 10 if "Pss" in sizes else 0


def make(folder: Path, host: str, behind: str, plugins: int, files: int) -> None:
    """Push the bases, and write the plugins, each with a file of its own."""
    choose = random.Random(1)  # noqa: S311
    for base in range(BASES):
        layers = [
            tars.pack(
                *(
                    tars.file(f"usr/share/base{base}/{layer}/{n}", choose.randbytes(20_000))
                    for n in range(files)
                )
            )
            for layer in range(3)
        ]
        registry.push(behind, f"base{base}", images.image(*layers), "v1")
    project.make_many(folder, host, plugins, BASES)


def benchmark(folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    cores = len(os.sched_getaffinity(0))
    build = [PYTHON, "-m", "fledge", "build", "-q"]
    script = " && ".join(
        f'"{PYTHON}" -m fledge build -q -c plugins/{number:02}/fledge.toml -o out.img'
        for number in range(arguments.plugins)
    )
    ways: Mapping[str, list[str]] = {
        "all at once": [*build, "plugins/*"],
        "again, with --changed": [*build, "plugins/*", "--changed"],
        "one after the other": ["/bin/sh", "-c", script],
        "in threads": [PYTHON, "-c", THREADS, str(cores)],
    }
    (folder / "storage").mkdir()
    with registry.serve(folder / "storage") as behind, registry.forward(behind) as front:
        host = front.url("").removeprefix("http://")
        make(folder, host, behind, arguments.plugins, arguments.files)
        servers = set(descendants())
        for number, (way, command) in enumerate(ways.items()):
            front.seen.clear()
            cache = folder / f"cache{0 if 'again' in way else number}"
            with watched(servers) as memory:
                run = measure(command, folder, {"FLEDGE_CACHE_DIR": str(cache)})
            asked = Counter(each.path for each in front.seen if "/blobs/" in each.path)
            extra = {
                "memory of all, MiB": memory.peak / (1 << 20),
                "requests of blobs": asked.total(),
                "most of one": max(asked.values(), default=0),
            }
            yield Row(way, [run], extra=extra)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plugins", type=int, default=50)
    parser.add_argument("--files", type=int, default=400)


if __name__ == "__main__":
    main(benchmark, __doc__, add_arguments, runs=1)
