"""Measure the stages of an image with one large gzip layer, alone and together.

Each stage runs alone: inflating, hashing the tar, writing it, reading its headers. Then a process
of fledge builds the image from a docker-registry on this machine, with an empty cache; counted is
what it reports for the step of the image, which ends when the tree is complete. That should take at
most 1.25 times as long as the slower of inflating and hashing, and the writing.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import re
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from measure import Row, Run, Way, add_image, fledge, image, in_turn, made_image, main, write_config

from fledge.oci import layers
from fledge.tree import Tree
from fledge.tree.compression import gunzip, members
from fledge.tree.content import Span, hash_file, read_content
from tests.support import registry

SHARE = "without writing, times the slower of inflating and hashing"


def benchmark(folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    gc.disable()  # as the command line does
    layout, tag = image(arguments) if arguments.image else (made_image("node"), "node")
    blob, tar = _layer(layout, tag), folder / "tar"
    with tar.open("wb") as file:
        file.writelines(_inflate(blob))
    with registry.serve(folder / "storage") as host:
        copy = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]
        subprocess.run([*copy, f"oci:{layout}:{tag}", f"docker://{host}/image:1"], check=True)
        write_config(folder, f"docker://{host}/image:1")
        inflating, hashing, writing, reading, together = in_turn(
            arguments,
            [
                Way("inflating", partial(_timed, lambda: _drain(blob))),
                Way("SHA-256 of the tar", partial(_timed, lambda: hash_file(tar))),
                Way("writing the tar", partial(_timed, lambda: _write(tar, folder / "copy"))),
                Way("reading and applying its headers", partial(_timed, lambda: _apply(tar))),
                Way("image and layers, empty cache", lambda: _build(folder), folder / "image"),
            ],
        )
    yield from (inflating, hashing, writing, reading)
    stages = zip(inflating.runs, hashing.runs, writing.runs, together.runs, strict=True)
    share = statistics.median(
        (run.seconds - write.seconds) / max(inflate.seconds, sha.seconds)
        for inflate, sha, write, run in stages
    )
    yield dataclasses.replace(together, extra={SHARE: share})


def _layer(layout: Path, tag: str) -> Path:
    """Return the blob of the only layer of an image."""
    blobs = layout / "blobs" / "sha256"
    manifests = json.loads((layout / "index.json").read_bytes())["manifests"]
    names = {each["annotations"]["org.opencontainers.image.ref.name"]: each for each in manifests}
    [layer] = json.loads((blobs / names[tag]["digest"][7:]).read_bytes())["layers"]
    return blobs / str(layer["digest"])[7:]


def _inflate(blob: Path) -> Iterator[bytes]:
    return members(read_content(Span(blob, 0, blob.stat().st_size)), gunzip)


def _drain(blob: Path) -> None:
    for _ in _inflate(blob):
        pass


def _write(tar: Path, copy: Path) -> None:
    copy.unlink(missing_ok=True)
    with copy.open("wb", buffering=0) as file:
        for piece in read_content(Span(tar, 0, tar.stat().st_size)):
            file.write(piece)


def _apply(tar: Path) -> None:
    layers.apply(Tree(mtime_ns=0), Span(tar, 0, tar.stat().st_size))


def _timed(stage: Callable[[], object]) -> Run:
    """Run a stage in this process."""
    start, used = time.perf_counter(), time.process_time()
    stage()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - used
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Run(seconds, cpu_seconds, memory, "")


def _build(folder: Path) -> Run:
    """Build with an empty cache; the time is that of the step of the image."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    run = fledge(folder, "build", "-o", "image")
    [seconds] = re.findall(r"^  . image .* ([\d.]+) s$", run.stderr, re.MULTILINE)
    return dataclasses.replace(run, seconds=float(seconds))


if __name__ == "__main__":
    main(benchmark, __doc__, add_image, runs=3)
