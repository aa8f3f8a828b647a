"""Build erofs images with fledge and with mkfs.erofs, and ext4 images with fledge, in turn.

fledge builds from a full cache. mkfs.erofs, which takes a folder, gets one that umoci has unpacked
before, so it has neither to read the layers nor to apply them. Needs root, for umoci.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
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

TABLES = {
    "ext4": 'type = "ext4"',
    "erofs": 'type = "erofs"',
    "erofs, lz4": 'type = "erofs"\ncompression = "lz4"',
    "erofs, zstd": 'type = "erofs"\ncompression = "zstd"',
}
MKFS = {"mkfs.erofs": [], "mkfs.erofs -zlz4hc,9 -C65536": ["-zlz4hc,9", "-C65536"]}


def benchmark(folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    layout, tag = image(arguments)
    unpack = ["umoci", "unpack", "--image", f"{layout}:{tag}", "bundle"]
    subprocess.run(unpack, cwd=folder, check=True, capture_output=True)
    # mkfs.erofs 1.5 fails on some of the names that scripts/debian-image makes.
    shutil.rmtree(folder / "bundle" / "rootfs" / "traps", ignore_errors=True)
    output = folder / "image"
    ways = []
    for title, table in TABLES.items():
        config = f"{title}.toml"
        write_config(folder, f"oci:{layout}:{tag}", f"[filesystem]\n{table}\n", config)
        build = partial(fledge, folder, "build", "-q", "-c", config, "-o", "image")
        ways.append(Way(title, build, output))
    peer = version("mkfs.erofs", "--version")
    for title, options in MKFS.items():
        command = ["mkfs.erofs", "--quiet", *options, "image", "bundle/rootfs"]
        ways.append(Way(title, partial(measure, command, folder), output, peer))
    ways[0].run()  # fills the cache
    yield from in_turn(arguments, ways)


if __name__ == "__main__":
    main(benchmark, __doc__, add_image)
