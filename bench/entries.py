"""Write ext4 images with more and more entries. Time and memory per entry should be constant.

The files have 1500 bytes each, 1000 of them in a directory. Measured is the writing of a tree that
is in memory, without the start of Python: the time that passes, and the processor time of the main
thread, beside which others hash and write. Memory is that of the process, less what it has without
any entry, so it includes the tree.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Iterator
from pathlib import Path

from curve import Curve, draw
from measure import PYTHON, Row, Run, main, measure

COUNTS = (10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000)
PER_DIRECTORY = 1000
EACH = "µs of the main thread per entry"
MEMORY = "bytes of memory per entry"

SCRIPT = """
import gc
import sys
import time
from pathlib import Path
from contextlib import closing
from fledge.ext4.format import Ext4
from fledge.host.destination import Destination
from fledge.host.files import replacing_together
from fledge.host.output import Hasher
from fledge.host.settings import Settings
from fledge.report import Reporter
from fledge.tree import Directory, File, Tree
from fledge.tree.content import Span
from fledge.tree.digest import Digest

gc.disable()  # as the command line does
count, per_directory = int(sys.argv[1]), int(sys.argv[2])
content = Span(Path("data"), 0, 1500, file_digest=Digest("0" * 64))  # as in a layer
tree = Tree(mtime_ns=0)
for number in range(count):
    if number % per_directory == 0:
        parent = Directory(mode=0o755)
        tree.add(b"%d" % number, parent)
    parent.children[b"file-%d" % number] = File(mode=0o644, content=content)
with replacing_together(Path("image")) as [new], closing(Hasher()) as hasher:
    destination = Destination(new, hasher, Reporter(), Settings.from_environment())
    start = time.perf_counter(), time.thread_time()
    Ext4(size_buffer_mb=64).write(tree, destination)
    print(time.perf_counter() - start[0], time.thread_time() - start[1], file=sys.stderr)
Path("image").unlink()
"""


def benchmark(folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    (folder / "data").write_bytes(os.urandom(1500))
    empty = _write(folder, 0).peak_memory
    counts: list[int] = arguments.counts
    runs: dict[int, list[Run]] = {count: [] for count in counts}
    for _ in range(arguments.runs):
        for count in counts:
            runs[count].append(_write(folder, count))
    rows = [_row(count, runs[count], empty) for count in counts]
    if arguments.svg:
        curves = tuple(Curve(title, [row.extra[title] for row in rows]) for title in (EACH, MEMORY))
        arguments.svg.write_text(draw(counts, "entries", (curves[0], curves[1])))
    yield from rows


def _row(count: int, runs: list[Run], empty: int) -> Row:
    """Return the row of one number of entries; ``empty`` is the memory without any."""
    passed, thread = zip(*(map(float, run.stderr.split()) for run in runs), strict=True)
    memory = statistics.median(run.peak_memory for run in runs) - empty
    extra = {
        "writing, s": statistics.median(passed),
        EACH: statistics.median(thread) / count * 1e6,
        MEMORY: memory / count,
    }
    return Row(f"{count:,} files", runs, extra=extra)


def _write(folder: Path, count: int) -> Run:
    return measure([PYTHON, "-c", SCRIPT, str(count), str(PER_DIRECTORY)], folder)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="numbers of files")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the curve there")


if __name__ == "__main__":
    main(benchmark, __doc__, add_arguments, runs=3)
