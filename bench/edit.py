"""Build an image again after one mapped file was edited, with a full cache.

    bench/edit.py oci:DIR:TAG

In the first such build the cached layers have no stamps, so they are verified by SHA-256. Beside it
stands SHA-256 of the artifact alone: no build can be faster, because one digest cannot be computed
in parts, and the first block of a filesystem depends on all files. Compare only figures of one run.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from measure import Run, measure

from fledge.store.stamps import SETTLING
from tests.support import project

RUNS = 7

BUILD = (sys.executable, "-m", "fledge", "build", "--quiet", "--output", "image")
HASH = ("openssl", "dgst", "-sha256", "image")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    layout = Path(sys.argv[1].removeprefix("oci:")).absolute()
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name).absolute()
        _write_project(folder, f"oci:{layout}")
        variables = {"FLEDGE_CACHE_DIR": str(folder / "cache")}
        _build(folder, variables, 0)
        time.sleep(SETTLING / 10**9)
        first = _build(folder, variables, 1)
        edited, hashed = [], []
        for number in range(RUNS):
            edited.append(_build(folder, variables, 2 + number))
            hashed.append(measure(HASH, folder, {}))
    print("| | time | processor time |")
    print("| --- | ---: | ---: |")
    _show("first build after an edit", [first])
    _show("build after an edit", edited)
    _show("SHA-256 of the artifact", hashed)


def _write_project(folder: Path, image: str) -> None:
    project.write(folder, "kestrel", b"#!/bin/sh\n", executable=True)
    text = f"""
        version = "1"
        strategy = "oci_rootfs"
        [source]
        image = "{image}"
        [agent]
        source_strategy = "local"
        path = "kestrel"
        [mappings]
        "app.conf" = "/etc/app.conf"
        """
    project.write(folder, "fledge.toml", text.encode())


def _build(folder: Path, variables: dict[str, str], number: int) -> Run:
    """Edit the mapped file and build."""
    project.write(folder, "app.conf", f"number = {number}\n".encode())
    return measure(BUILD, folder, variables)


def _show(title: str, runs: list[Run]) -> None:
    seconds = statistics.median(run.seconds for run in runs)
    processor = statistics.median(run.cpu_seconds for run in runs)
    print(f"| {title} | {seconds:.2f} s | {processor:.2f} s |")


if __name__ == "__main__":
    main()
