"""Read and apply layers of more and more entries. Time and memory per entry should be constant."""

from __future__ import annotations

import argparse
import statistics
import tarfile
from collections.abc import Iterator
from pathlib import Path

from measure import PYTHON, Row, main, measure

COUNTS = (10_000, 100_000, 300_000, 1_000_000)
PER_DIRECTORY = 10
SIZE = 3000
"""Bytes in each file."""
EACH = "µs per entry"
MEMORY = "bytes of memory per entry"

SCRIPT = """
import gc
import sys
import time
from pathlib import Path
from fledge.oci import layers
from fledge.tree import Tree
from fledge.tree.content import Span

gc.disable()  # as the command line does
path = Path(sys.argv[1])
start = time.process_time()
layers.apply(Tree(mtime_ns=0), Span(path, 0, path.stat().st_size))
print(time.process_time() - start, file=sys.stderr)
"""


def write_layer(path: Path, count: int, is_pax: bool) -> None:
    """Write a layer like a ``node_modules``. The contents of its files are holes."""
    with path.open("wb") as file:
        for number in range(count):
            package, index = divmod(number, PER_DIRECTORY)
            name = f"srv/node_modules/@scope/package-{package:06}"
            entry = tarfile.TarInfo(f"{name}/module-{index}.js" if index else name)
            entry.type = tarfile.REGTYPE if index else tarfile.DIRTYPE
            entry.size = SIZE if index else 0
            # containerd records the time of each file to the nanosecond.
            entry.mtime = 1_700_000_000 + (number / 1024 if is_pax else package)
            file.write(entry.tobuf(tarfile.PAX_FORMAT if is_pax else tarfile.GNU_FORMAT))
            file.seek(entry.size + -entry.size % tarfile.BLOCKSIZE, 1)
        file.truncate(file.tell() + 2 * tarfile.BLOCKSIZE)


def benchmark(folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    layer = folder / "layer"
    command = [PYTHON, "-c", SCRIPT, str(layer)]
    write_layer(layer, 0, is_pax=False)
    empty = measure(command, folder).peak_memory
    for count in arguments.counts:
        for is_pax in (False, True):
            write_layer(layer, count, is_pax)
            runs = [measure(command, folder) for _ in range(arguments.runs)]
            seconds = statistics.median(float(run.stderr) for run in runs)
            row = Row(f"{count:,} entries, {'pax' if is_pax else 'GNU'}", runs)
            extra = {EACH: seconds / count * 1e6, MEMORY: (row.peak_memory - empty) / count}
            yield Row(row.name, runs, extra=extra)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="numbers of entries")


if __name__ == "__main__":
    main(benchmark, __doc__, add_arguments, runs=3)
