"""Build one image with fledge and with skopeo, umoci and mkfs.ext4 -d, in turn.

    bench/rootfs.py oci:DIR:TAG     any image that lies in an OCI layout
    bench/rootfs.py --large         fledge alone, an image with 4 GiB of random files

The image is put into a docker-registry on this machine. fledge runs three times a round: with an
empty cache, with the full one that this leaves, and so with builder = "mkfs". Needs root, for
umoci. Only figures of one run are comparable.
"""

from __future__ import annotations

import argparse
import hashlib
import json
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

from fledge.tree.content import whole_file

CHECKOUT = Path(__file__).parents[1]
sys.path.insert(0, str(CHECKOUT / "tests"))

import registry  # noqa: E402

RUNS = 5
CLASSIC_SIDE = "skopeo, umoci, mkfs.ext4 -d"
TITLES = {
    "cold": "fledge build, empty cache",
    "warm": "fledge build, full cache",
    "mkfs": 'the same with builder = "mkfs"',
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
    parser.add_argument("--large", action="store_true", help="only the image of 4 GiB")
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
    print("| | time | of processors | faster | peak memory | image and layers | writing |")
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
    """What is left of the run before, so that none takes the time to remove it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _step(name: str, runs: Sequence[Run]) -> str:
    """The median time of one step, as fledge tells it."""
    said = [re.findall(rf"^  . {name} .* ([\d.]+) s$", run.said, re.MULTILINE) for run in runs]
    times = [float(time) for [time] in said if time] if all(said) else []
    return f"{statistics.median(times):.2f} s" if times else ""


def _large(folder: Path) -> None:
    _large_layout(folder / "layout")
    _project(folder, "oci:layout")
    run = _fledge(folder)
    print(
        f"4 GiB in {run.seconds:.1f} s with at most {mib(run.peak_memory)} of memory\n\n{run.said}"
    )


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
    """An OCI layout with one uncompressed layer of random files."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    with tarfile.open(folder / "layer", "w") as tar:
        for number in range(LARGE_FILES):
            header = tarfile.TarInfo(f"file{number}")
            header.size = LARGE_FILE_SIZE
            with open("/dev/urandom", "rb") as noise:  # noqa: PTH123
                tar.addfile(header, noise)
    layer = whole_file(folder / "layer")
    digest, size = layer.sha256, layer.size
    (folder / "layer").rename(blobs / digest)

    def add(document: object) -> dict[str, object]:
        raw = json.dumps(document).encode()
        sha256 = hashlib.sha256(raw).hexdigest()
        (blobs / sha256).write_bytes(raw)
        return {"digest": f"sha256:{sha256}", "size": len(raw)}

    oci = "application/vnd.oci.image"
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{digest}"]}
    config = add({"architecture": architecture, "os": "linux", "rootfs": rootfs})
    blob = {"mediaType": f"{oci}.layer.v1.tar", "digest": f"sha256:{digest}", "size": size}
    manifest = add(
        {
            "schemaVersion": 2,
            "mediaType": f"{oci}.manifest.v1+json",
            "config": {"mediaType": f"{oci}.config.v1+json", **config},
            "layers": [blob],
        }
    )
    index = {
        "schemaVersion": 2,
        "manifests": [{"mediaType": f"{oci}.manifest.v1+json", **manifest}],
    }
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


if __name__ == "__main__":
    main()
