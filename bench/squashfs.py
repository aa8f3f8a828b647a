"""Write the tree of an image as a squashfs, by fledge and by mksquashfs, in turn.

fledge builds it from its cache, which has all layers. mksquashfs gets the folder that umoci unpacks
and that is in the page cache, the same codec, level and block size, and as many processors. The
time of fledge has the start of Python and the verification of all layers in it. Needs root, for
umoci.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from measure import (
    Row,
    Way,
    add_image,
    fledge,
    image,
    in_turn,
    main,
    measure,
    version,
    write_config,
)

FILESYSTEM = """
[filesystem]
type = "squashfs"
compression = "{codec}"
compression_level = {level}
"""


def benchmark(folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    layout, tag = image(arguments)
    codec, level = arguments.codec, arguments.level
    write_config(folder, f"oci:{layout}:{tag}", FILESYSTEM.format(codec=codec, level=level))
    unpack = ["umoci", "unpack", "--image", f"{layout}:{tag}", str(folder / "bundle")]
    subprocess.run(unpack, check=True, capture_output=True)
    build = ("build", "-q", "-o", "image")
    theirs = [
        *("mksquashfs", "bundle/rootfs", "image", "-noappend", "-no-progress", "-comp", codec),
        *("-Xcompression-level", str(level), "-processors", str(len(os.sched_getaffinity(0)))),
    ]
    fledge(folder, *build)  # fills the cache
    output = folder / "image"
    yield from in_turn(
        arguments,
        [
            Way("fledge build", lambda: fledge(folder, *build), output),
            Way(
                "mksquashfs",
                lambda: measure(theirs, folder),
                output,
                version("mksquashfs", "-version"),
            ),
        ],
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_image(parser)
    parser.add_argument("--codec", choices=["gzip", "zstd"], default="zstd")
    parser.add_argument("--level", type=int, default=9)


if __name__ == "__main__":
    main(benchmark, __doc__, add_arguments, runs=3)
