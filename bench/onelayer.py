"""Measure the stages of an image with one large gzip layer, alone and together.

    bench/onelayer.py oci:DIR:TAG    an image in an OCI layout, whose layer is compressed by gzip

Each stage runs alone: inflating, hashing the tar, writing it, reading its headers. Then a process
of fledge builds the image from a docker-registry on this machine, with an empty cache; counted is
what it reports for the step of the image, which ends when the tree is complete. The median time of
that should be at most 1.25 times that of the slowest of inflating and hashing. Compare only the
figures of one run.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from measure import measure

from fledge.oci import layers
from fledge.tree import Tree
from fledge.tree.compression import gunzip, members
from fledge.tree.content import Span, hash_file, read_content
from tests.support import registry

CHECKOUT = Path(__file__).parents[1]

RUNS = 5
PIECE_SIZE = 1 << 20

CONFIG = """
version = "1"
strategy = "oci_rootfs"
[agent]
source_strategy = "local"
path = "agent"
[source]
image = "docker://{image}"
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", help="oci:DIR:TAG")
    parser.add_argument("--runs", type=int, default=RUNS, help="of each (default: %(default)s)")
    arguments = parser.parse_args()
    gc.disable()  # as the command line does
    (CHECKOUT / ".cache").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CHECKOUT / ".cache") as name:
        _compare(Path(name), arguments.image, arguments.runs)


def _compare(folder: Path, source: str, runs: int) -> None:
    blob, tar = _layer(source), folder / "tar"
    with tar.open("wb") as file:
        file.writelines(_inflate(blob))
    (folder / "agent").write_text("#!/bin/sh\n")
    with registry.serve(folder / "storage") as host:
        image = f"{host}/image:1"
        subprocess.run(
            [
                *("skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"),
                *(source, f"docker://{image}"),
            ],
            check=True,
        )
        (folder / "fledge.toml").write_text(CONFIG.format(image=image))
        stages: dict[str, Callable[[], tuple[float, float]]] = {
            "inflating": lambda: _timed(lambda: _drain(blob)),
            "SHA-256 of the tar": lambda: _timed(lambda: _hash(tar)),
            "writing the tar": lambda: _timed(lambda: _write(tar, folder / "copy")),
            "reading and applying its headers": lambda: _timed(lambda: _apply(tar)),
            "image and layers, empty cache": lambda: _build(folder),
        }
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in stages}
        for _ in range(runs):
            for name, stage in stages.items():
                os.sync()
                measured[name].append(stage())
    print(f"{blob.stat().st_size >> 20} MiB, unpacked {tar.stat().st_size >> 20} MiB;", end=" ")
    print(f"{runs} runs of each, medians, {os.cpu_count()} cores:\n")
    print("| | time | processor time |")
    print("| --- | ---: | ---: |")
    for name, times in measured.items():
        wall, cpu = (statistics.median(each) for each in zip(*times, strict=True))
        print(f"| {name} | {wall:.2f} s | {cpu:.2f} s |")
    *alone, together = measured.values()
    ratios = [
        run[0] / max(inflating[0], hashing[0])
        for inflating, hashing, run in zip(alone[0], alone[1], together, strict=True)
    ]
    print(f"\ntogether {statistics.median(ratios):.2f} times the slower of inflating and hashing")


def _layer(source: str) -> Path:
    """Return the blob of the only layer of an image in an OCI layout."""
    _, folder, tag = source.split(":")
    blobs = Path(folder) / "blobs" / "sha256"
    for listed in json.loads((Path(folder) / "index.json").read_bytes())["manifests"]:
        if listed["annotations"]["org.opencontainers.image.ref.name"] == tag:
            manifest = json.loads((blobs / listed["digest"][7:]).read_bytes())
            [layer] = manifest["layers"]
            digest: str = layer["digest"]
            return blobs / digest[7:]
    sys.exit(f"{folder} has no tag {tag}")


def _inflate(blob: Path) -> Iterator[bytes]:
    return members(read_content(Span(blob, 0, blob.stat().st_size)), gunzip)


def _drain(blob: Path) -> None:
    for _ in _inflate(blob):
        pass


def _hash(tar: Path) -> None:
    hash_file(tar)


def _write(tar: Path, copy: Path) -> None:
    copy.unlink(missing_ok=True)
    with copy.open("wb", buffering=0) as file:
        for piece in read_content(Span(tar, 0, tar.stat().st_size)):
            file.write(piece)


def _apply(tar: Path) -> None:
    layers.apply(Tree(mtime_ns=0), Span(tar, 0, tar.stat().st_size))


def _timed(stage: Callable[[], None]) -> tuple[float, float]:
    """Run a stage; return its time and its processor time, in seconds."""
    start, used = time.perf_counter(), time.process_time()
    stage()
    return time.perf_counter() - start, time.process_time() - used


def _build(folder: Path) -> tuple[float, float]:
    """Build with an empty cache; return the time of the step of the image, and the processor time
    of the whole process, in seconds.
    """
    shutil.rmtree(folder / "cache", ignore_errors=True)
    (folder / "fledge.img").unlink(missing_ok=True)
    command = [sys.executable, "-m", "fledge", "build", "-o", "fledge.img"]
    run = measure(command, folder, {"FLEDGE_CACHE_DIR": str(folder / "cache")})
    [seconds] = re.findall(r"^  . image .* ([\d.]+) s$", run.stderr, re.MULTILINE)
    return float(seconds), run.cpu_seconds


if __name__ == "__main__":
    main()
