"""Build erofs images with fledge and with mkfs.erofs, and ext4 images with fledge, in turn.

    bench/erofs.py oci:DIR:TAG     an image in an OCI layout

fledge builds from a full cache. mkfs.erofs, which takes a folder, gets one that umoci has unpacked
before, so it has neither to read the layers nor to apply them. Needs root, for umoci. Compare only
the figures of one run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import compare, measure

CHECKOUT = Path(__file__).parents[1]
RUNS = 5

TABLES = {
    "ext4": 'type = "ext4"',
    "erofs": 'type = "erofs"',
    "erofs, lz4": 'type = "erofs"\ncompression = "lz4"',
    "erofs, zstd": 'type = "erofs"\ncompression = "zstd"',
}
MKFS = {"mkfs.erofs": [], "mkfs.erofs -zlz4hc,9 -C65536": ["-zlz4hc,9", "-C65536"]}


def main() -> None:
    if len(sys.argv) != 2 or not sys.argv[1].startswith("oci:"):
        sys.exit(__doc__)
    if os.geteuid() != 0:
        sys.exit("needs root, for umoci unpack")
    layout = os.fspath(Path(sys.argv[1].removeprefix("oci:")).absolute())
    (CHECKOUT / ".cache").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CHECKOUT / ".cache") as name:
        _compare(Path(name), layout)


def _compare(folder: Path, layout: str) -> None:
    unpack = ["umoci", "unpack", "--image", layout, "bundle"]
    subprocess.run(unpack, cwd=folder, check=True, capture_output=True)
    # mkfs.erofs 1.5 fails on some of the names that scripts/debian-image makes.
    shutil.rmtree(folder / "bundle" / "rootfs" / "traps", ignore_errors=True)
    (folder / "agent").write_text("#!/bin/sh\n")
    commands = {title: _fledge(folder, title, table, layout) for title, table in TABLES.items()}
    for title, options in MKFS.items():
        commands[title] = ["mkfs.erofs", "--quiet", *options, "image", "bundle/rootfs"]
    cache = {"XDG_CACHE_HOME": os.fspath(folder / "cache")}
    measure(commands["ext4"], folder, cache)  # fills the cache
    print(f"{RUNS} runs of each, medians, {os.cpu_count()} cores:\n")
    compare(commands, folder, cache, RUNS)


def _fledge(folder: Path, title: str, table: str, layout: str) -> list[str]:
    config = folder / f"{title}.toml"
    config.write_text(f"""
version = "1"
strategy = "oci_rootfs"
[agent]
source_strategy = "local"
path = "agent"
[source]
image = "oci:{layout}"
[filesystem]
{table}
""")
    return [sys.executable, "-m", "fledge", "build", "-q", "-c", config.name, "-o", "image"]


if __name__ == "__main__":
    main()
