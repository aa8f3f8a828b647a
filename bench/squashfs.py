"""Write the tree of an image as a squashfs, by fledge and by mksquashfs, in turn, and compare them.

    bench/squashfs.py oci:DIR:TAG [--codec gzip|zstd] [--level N] [--runs N]

fledge builds it from its cache, which has all layers. mksquashfs gets the folder that umoci unpacks
and that is in the page cache, the same codec, level and block size, and as many processors. The
time of fledge has the start of Python and the verification of all layers in it. Needs root, for
umoci. Compare only the figures of one run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from measure import compare

CHECKOUT = Path(__file__).parents[1]

PROJECT = """
version = "1"
strategy = "oci_rootfs"
[agent]
source_strategy = "local"
path = "agent"
[source]
image = "{image}"
[filesystem]
type = "squashfs"
compression = "{codec}"
compression_level = {level}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", help="oci:DIR:TAG")
    parser.add_argument("--codec", choices=["gzip", "zstd"], default="zstd")
    parser.add_argument("--level", type=int, default=9)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("needs root, for umoci unpack")
    (CHECKOUT / ".cache").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CHECKOUT / ".cache") as name:
        _compare(Path(name), arguments)


def _compare(folder: Path, arguments: argparse.Namespace) -> None:
    transport, layout, tag = arguments.image.split(":")
    layout = Path(layout).resolve()
    codec, level = arguments.codec, arguments.level
    image = f"{transport}:{layout}:{tag}"
    (folder / "agent").write_text("#!/bin/sh\n")
    (folder / "fledge.toml").write_text(PROJECT.format(image=image, codec=codec, level=level))
    unpack = ["umoci", "unpack", "--image", f"{layout}:{tag}", str(folder / "bundle")]
    subprocess.run(unpack, check=True, capture_output=True)
    processors = len(os.sched_getaffinity(0))
    ours = [sys.executable, "-m", "fledge", "build", "-o", "image"]
    theirs = [
        *("mksquashfs", "bundle/rootfs", "image", "-noappend", "-no-progress"),
        *("-comp", codec, "-Xcompression-level", str(level), "-processors", str(processors)),
    ]
    variables = {"FLEDGE_CACHE_DIR": str(folder / "cache")}
    subprocess.run(ours, cwd=folder, env={**os.environ, **variables}, check=True)
    done = subprocess.run(["mksquashfs", "-version"], capture_output=True, text=True, check=False)
    version = re.findall(r"version (\S+)", done.stdout)[0]
    package = {"gzip": "deflate", "zstd": "zstandard"}[codec]
    commands = {
        f"fledge build, {package} {metadata.version(package)}": ours,
        f"mksquashfs {version}": theirs,
    }
    print(f"{codec}, level {level}, {processors} processors, {arguments.runs} runs, medians:\n")
    compare(commands, folder, variables, arguments.runs)
    shutil.rmtree(folder / "bundle")


if __name__ == "__main__":
    main()
