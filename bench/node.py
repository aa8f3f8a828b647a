"""Build the image of scripts/node-image with fledge, and an ext4 of its tar with tar2ext4.

Both run in turn.
tar2ext4 is a program of Go that writes an ext4 from one tar: https://github.com/microsoft/hcsshim,
cmd/tar2ext4, measured at commit 74e141176d32. No package of Debian has it; build it, and name it
with --tar2ext4. It gets the tar that is in the layer, inflated and in the page cache. It makes no
digest, no journal and no checksums, of which fledge makes all, and it verifies nothing.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from measure import Row, Run, Way, fledge, in_turn, made_image, main, measure, write_config

from fledge.store.stamps import SETTLING

BUILD = ("build", "-q", "-o", "image")


def benchmark(folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    layout = made_image("node")
    write_config(folder, f"oci:{layout}:node")
    output = folder / "image"
    fledge(folder, *BUILD)
    time.sleep(SETTLING / 10**9)
    fledge(folder, *BUILD)  # leaves a stamp of the layer, as every later build finds it
    ways = [
        Way("fledge build, empty cache", lambda: _cold(folder), output),
        Way("fledge build, full cache", partial(fledge, folder, *BUILD), output),
    ]
    if arguments.tar2ext4:
        _inflate(layout, folder / "layer.tar")
        command = [str(arguments.tar2ext4.resolve()), "-i", "layer.tar", "-o", "image"]
        ways.append(Way("tar2ext4", partial(measure, command, folder), output, "of hcsshim"))
    yield from in_turn(arguments, ways)


def _cold(folder: Path) -> Run:
    shutil.rmtree(folder / "cold", ignore_errors=True)
    return fledge(folder, *BUILD, cache="cold")


def _inflate(layout: Path, target: Path) -> None:
    """Write the tar of the only layer."""
    [manifest] = json.loads((layout / "index.json").read_bytes())["manifests"]
    [layer] = json.loads(_blob(layout, manifest["digest"]).read_bytes())["layers"]
    with gzip.open(_blob(layout, layer["digest"])) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tar2ext4", type=Path, metavar="PATH", help="the program; see above")


if __name__ == "__main__":
    main(benchmark, __doc__, add_arguments, runs=3)
