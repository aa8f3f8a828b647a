"""Build an image with fledge and with skopeo, umoci and mkfs.ext4 -d, in turn.

The image is pushed to a docker-registry on this machine. In each round fledge builds it three
times: with an empty cache, with a full cache, and with a full cache and builder = "mkfs". Needs
root, for umoci. With --large, fledge alone builds an image of 4 GiB of random files, once.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from measure import (
    Row,
    Run,
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

from fledge.tree.content import hash_file
from tests.support import images, registry

LARGE_FILES = 16
LARGE_FILE_SIZE = 256 << 20

CLASSIC = """
set -e
skopeo --insecure-policy copy --quiet --src-tls-verify=false docker://$IMAGE oci:copy:x
umoci unpack --image copy:x bundle 2>umoci.log
truncate -s "$SIZE" classic.img
mkfs.ext4 -q -d bundle/rootfs classic.img
"""
BUILD = ("build", "-o", "fledge.img")


def benchmark(folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    if arguments.large:
        _large_layout(folder)
        write_config(folder, "oci:layout")
        yield Row("4 GiB", [fledge(folder, *BUILD)], (folder / "fledge.img").stat().st_size)
        return
    layout, tag = image(arguments)
    with registry.serve(folder / "storage") as host:
        pushed = f"{host}/image:1"
        subprocess.run(
            [
                *("skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"),
                *(f"oci:{layout}:{tag}", f"docker://{pushed}"),
            ],
            check=True,
        )
        write_config(folder, f"docker://{pushed}")
        write_config(folder, f"docker://{pushed}", '[filesystem]\nbuilder = "mkfs"\n', "mkfs.toml")
        output = folder / "fledge.img"
        with_mkfs = partial(fledge, folder, *BUILD, "-c", "mkfs.toml")
        peer = f"{version('skopeo', '-v')}, {version('umoci', '-v')}, {version('mkfs.ext4', '-V')}"
        classic = partial(_classic, folder, pushed)
        ways = [
            Way("fledge build, empty cache", lambda: _cold(folder), output),
            Way("fledge build, full cache", partial(fledge, folder, *BUILD), output),
            Way('full cache, builder = "mkfs"', with_mkfs, output),
            Way("skopeo, umoci, mkfs.ext4 -d", classic, folder / "classic.img", peer),
        ]
        for row in in_turn(arguments, ways):
            steps = {f"{step}, s": _step(step, row.runs) for step in ("image", "write")}
            yield replace(row, extra={key: value for key, value in steps.items() if value})


def _cold(folder: Path) -> Run:
    shutil.rmtree(folder / "cache", ignore_errors=True)
    return fledge(folder, *BUILD)


def _classic(folder: Path, image: str) -> Run:
    for name in ("copy", "bundle"):
        shutil.rmtree(folder / name, ignore_errors=True)
    size = (folder / "fledge.img").stat().st_size
    return measure(["sh", "-c", CLASSIC], folder, {"IMAGE": image, "SIZE": str(size)})


def _step(name: str, runs: Sequence[Run]) -> float:
    """Return the median time of one step, as reported by fledge; 0 where it reports none."""
    steps = [re.findall(rf"^  . {name} .* ([\d.]+) s$", run.stderr, re.MULTILINE) for run in runs]
    return statistics.median(float(step[0]) for step in steps) if all(steps) else 0


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
    made = images.manifest([listed], [layer.digest.hex], architecture=architecture)
    images.write_layout(folder / "layout", made)
    (folder / "layer").rename(folder / "layout" / "blobs" / "sha256" / layer.digest.hex)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_image(parser)
    parser.add_argument("--large", action="store_true", help="build only an image of 4 GiB")


if __name__ == "__main__":
    main(benchmark, __doc__, add_arguments)
