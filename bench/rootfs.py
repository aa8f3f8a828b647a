"""Build an image with fledge and with skopeo, umoci and mkfs.ext4 -d, in turn, and compare them.

    bench/rootfs.py oci:DIR:TAG     an image in an OCI layout
    bench/rootfs.py --large         fledge alone, with an image of 4 GiB of random files

The image is pushed to a docker-registry on this machine. In each round fledge builds it three
times: with an empty cache, with a full cache, and with a full cache and builder = "mkfs". Needs
root, for umoci. Compare only the figures of one run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from measure import Run, measure, mib

from fledge.tree.content import hash_file
from tests.support import images, registry

CHECKOUT = Path(__file__).parents[1]

RUNS = 5
CLASSIC_SIDE = "skopeo, umoci, mkfs.ext4 -d"
TITLES = {
    "cold": "fledge build, empty cache",
    "warm": "fledge build, full cache",
    "mkfs": 'full cache, builder = "mkfs"',
}
LARGE_FILES = 16
LARGE_FILE_SIZE = 256 << 20

CLASSIC = """
set -e
skopeo --insecure-policy copy --quiet --src-tls-verify=false docker://$IMAGE oci:copy:x
umoci unpack --image copy:x bundle 2>umoci.log
truncate -s "$SIZE" classic.img
mkfs.ext4 -q -d bundle/rootfs classic.img
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", nargs="?", help="oci:DIR:TAG")
    parser.add_argument(
        "--large", action="store_true", help="build only an image of 4 GiB, with fledge"
    )
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("needs root, for umoci unpack")
    (CHECKOUT / ".cache").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CHECKOUT / ".cache") as name:
        if arguments.large:
            _large(Path(name))
        elif arguments.image:
            _compare(Path(name), arguments.image)
        else:
            parser.print_help()


def _compare(folder: Path, source: str) -> None:
    with registry.serve(folder / "storage") as host:
        image = f"{host}/image:1"
        subprocess.run(
            [
                *("skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"),
                *(source, f"docker://{image}"),
            ],
            check=True,
        )
        _project(folder, f"docker://{image}")
        sides: dict[str, list[Run]] = {CLASSIC_SIDE: [], "cold": [], "warm": [], "mkfs": []}
        size = 0
        for _ in range(RUNS):
            _remove(folder / "cache")
            for side, config in (
                ("cold", "fledge.toml"),
                ("warm", "fledge.toml"),
                ("mkfs", "mkfs.toml"),
            ):
                _remove(folder / "fledge.img")
                sides[side].append(_fledge(folder, config))
            size = (folder / "fledge.img").stat().st_size
            for name in ("copy", "bundle", "classic.img"):
                _remove(folder / name)
            variables = {"IMAGE": image, "SIZE": str(size)}
            classic = measure(["sh", "-c", CLASSIC], folder, variables)
            sides[CLASSIC_SIDE].append(classic)
    baseline = sides[CLASSIC_SIDE]
    print(f"{RUNS} runs of each, medians, {os.cpu_count()} cores:\n")
    print("| | time | processor time | faster | peak memory | image and layers | writing |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for side, runs in sides.items():
        pairs = zip(baseline, runs, strict=True)
        faster = statistics.median(a.seconds / b.seconds for a, b in pairs)
        cells = [
            TITLES.get(side, side),
            f"{statistics.median(run.seconds for run in runs):.2f} s",
            f"{statistics.median(run.cpu_seconds for run in runs):.2f} s",
            f"{faster:.1f} times",
            mib(statistics.median(run.peak_memory for run in runs)),
            *(_step(step, runs) for step in ("image", "write")),
        ]
        print(f"| {' | '.join(cells)} |")


def _remove(path: Path) -> None:
    """Remove the output of the previous run, so that no run spends time on it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _step(name: str, runs: Sequence[Run]) -> str:
    """Return the median time of one step, as reported by fledge."""
    steps = [re.findall(rf"^  . {name} .* ([\d.]+) s$", run.stderr, re.MULTILINE) for run in runs]
    times = [float(time) for [time] in steps if time] if all(steps) else []
    return f"{statistics.median(times):.2f} s" if times else ""


def _large(folder: Path) -> None:
    _large_layout(folder)
    _project(folder, "oci:layout")
    run = _fledge(folder)
    print(f"4 GiB in {run.seconds:.1f} s, peak memory {mib(run.peak_memory)}\n\n{run.stderr}")


def _project(folder: Path, image: str) -> None:
    (folder / "agent").write_text("#!/bin/sh\n")
    for name, builder in (("fledge.toml", "native"), ("mkfs.toml", "mkfs")):
        (folder / name).write_text(f"""
version = "1"
strategy = "oci_rootfs"
[agent]
source_strategy = "local"
path = "agent"
[source]
image = "{image}"
[filesystem]
builder = "{builder}"
""")


def _fledge(folder: Path, config: str = "fledge.toml") -> Run:
    command = [sys.executable, "-m", "fledge", "build", "-c", config, "-o", "fledge.img"]
    return measure(command, folder, {"FLEDGE_CACHE_DIR": str(folder / "cache")})


def _large_layout(folder: Path) -> None:
    """Write an OCI layout with one uncompressed layer of random files to ``layout``."""
    with tarfile.open(folder / "layer", "w") as tar:
        for number in range(LARGE_FILES):
            header = tarfile.TarInfo(f"file{number}")
            header.size = LARGE_FILE_SIZE
            with open("/dev/urandom", "rb") as noise:  # noqa: PTH123
                tar.addfile(header, noise)
    layer = hash_file(folder / "layer")
    kind = f"{images.OCI}.layer.v1.tar"
    listed = {"mediaType": kind, "digest": f"sha256:{layer.digest.hex}", "size": layer.size}
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    image = images.manifest([listed], [layer.digest.hex], architecture=architecture)
    images.write_layout(folder / "layout", image)
    (folder / "layer").rename(folder / "layout" / "blobs" / "sha256" / layer.digest.hex)


if __name__ == "__main__":
    main()
