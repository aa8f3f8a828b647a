"""Build a disk of 500 MiB with and without [verity], in turn. The difference is the sealing.

veritysetup, which makes the same tree, is measured beside it.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

from measure import Run, measure, mib

SIZE = 500 << 20
"""Bytes of the disk's files."""
FILES = 50
ROUNDS = 5

IMAGE = """
import sys
from pathlib import Path
from tests.support import images, tars
folder = Path(sys.argv[1])
images.write_layout(folder / "layout", images.image(tars.pack(tars.folder("etc"))), "latest")
"""

CONFIG = """\
version = "1"
strategy = "oci_rootfs"
[source]
image = "oci:layout:latest"
[agent]
source_strategy = "local"
path = "agent"
[filesystem]
read_only = true
[mappings]
data = "/data"
"""


def main() -> None:
    checkout = Path(__file__).parents[1]
    variables = {"PYTHONPATH": str(checkout)}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        (folder / "data").mkdir()
        for number in range(FILES):
            noise = hashlib.shake_128(b"%d" % number).digest(SIZE // FILES)
            (folder / "data" / str(number)).write_bytes(noise)
        (folder / "agent").write_bytes(b"#!/bin/sh\n")
        measure([sys.executable, "-c", IMAGE, str(folder)], folder, variables)
        (folder / "plain.toml").write_text(CONFIG)
        (folder / "sealed.toml").write_text(f"{CONFIG}[verity]\n")
        runs: dict[str, list[Run]] = {"plain": [], "sealed": [], "veritysetup format": []}
        for _ in range(ROUNDS):
            for config in ("plain", "sealed"):
                build = ["-m", "fledge", "build", "-q", "-c", f"{config}.toml", "-o", config]
                runs[config].append(measure([sys.executable, *build], folder, variables))
            if shutil.which("veritysetup"):
                command = ["veritysetup", "format", "plain", "tree"]
                runs["veritysetup format"].append(measure(command, folder, {}))
        print("| | best time | processor time | peak memory |\n| --- | ---: | ---: | ---: |")
        for what, measured in runs.items():
            if measured:
                print(f"| {what} | {_best(measured)} |")
        added = [min(each.seconds for each in runs[key]) for key in ("sealed", "plain")]
        print(f"\nsealing {mib(SIZE)} adds {added[0] - added[1]:.2f} s")


def _best(runs: list[Run]) -> str:
    best = min(runs, key=lambda run: run.seconds)
    memory = max(run.peak_memory for run in runs)
    return f"{best.seconds:.2f} s | {best.cpu_seconds:.2f} s | {mib(memory)}"


if __name__ == "__main__":
    main()
