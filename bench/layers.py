"""Read and apply layers of more and more entries. Time and memory per entry should be constant."""

from __future__ import annotations

import sys
import tarfile
import tempfile
from pathlib import Path

from measure import measure, mib

COUNTS = (10_000, 100_000, 300_000, 1_000_000)
PER_DIRECTORY = 10
SIZE = 3000
"""Bytes in each file. With far less, a million entries would exceed the budget of memory."""
RUNS = 3

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


def main() -> None:
    print("| entries | format | reading and applying | per entry | peak memory | per entry |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        layer = folder / "layer"
        command = [sys.executable, "-c", SCRIPT, str(layer)]
        variables = {"PYTHONPATH": str(Path(__file__).parents[1])}
        write_layer(layer, 0, is_pax=False)
        empty = measure(command, folder, variables)
        for count in COUNTS:
            for is_pax in (False, True):
                write_layer(layer, count, is_pax)
                runs = [measure(command, folder, variables) for _ in range(RUNS)]
                seconds = min(float(run.stderr) for run in runs)
                peak = min(run.peak_memory for run in runs)
                memory = (peak - empty.peak_memory) / count
                title = "pax" if is_pax else "GNU"
                print(
                    f"| {count:,} | {title} | {seconds:.2f} s | {seconds / count * 1e6:.1f} µs"
                    f" | {mib(peak)} | {memory:.0f} bytes |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
