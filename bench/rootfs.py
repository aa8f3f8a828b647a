"""Build one image with fledge and with skopeo, umoci and mkfs.ext4 -d, in turn.

    bench/rootfs.py oci:DIR:TAG     any image that lies in an OCI layout
    bench/rootfs.py --large         fledge alone, an image with 4 GiB of random files

The image is put into a docker-registry on this machine. fledge runs twice a round: with an empty
cache, and with the full one that this leaves. Needs root, for umoci. Only figures of one run are
comparable.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from measure import Run, measure, mib

from fledge.content import whole_file

CHECKOUT = Path(__file__).parents[1]
sys.path.insert(0, str(CHECKOUT / "tests"))

import registry  # noqa: E402

RUNS = 3
LARGE_FILES = 16
LARGE_FILE_SIZE = 256 << 20

CLASSIC = """
set -e
rm -rf copy bundle classic.img
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
        sides: dict[str, list[Run]] = {"skopeo, umoci, mkfs.ext4 -d": [], "cold": [], "warm": []}
        size = 0
        for _ in range(RUNS):
            shutil.rmtree(folder / "cache", ignore_errors=True)
            sides["cold"].append(_fledge(folder))
            sides["warm"].append(_fledge(folder))
            size = (folder / "fledge.img").stat().st_size
            variables = {"IMAGE": image, "SIZE": str(size)}
            classic = measure(["sh", "-c", CLASSIC], folder, variables)
            sides["skopeo, umoci, mkfs.ext4 -d"].append(classic)
    baseline = sides["skopeo, umoci, mkfs.ext4 -d"]
    print(f"| {RUNS} runs of each, medians, {os.cpu_count()} cores | time | faster | peak memory |")
    print("| --- | ---: | ---: | ---: |")
    for side, runs in sides.items():
        seconds = statistics.median(run.seconds for run in runs)
        memory = statistics.median(run.peak_memory for run in runs)
        pairs = zip(baseline, runs, strict=True)
        times = statistics.median(a.seconds / b.seconds for a, b in pairs)
        title = side if runs is baseline else f"fledge build, {side} cache"
        print(f"| {title} | {seconds:.2f} s | {times:.1f} times | {mib(memory)} |")
    for side in ("cold", "warm"):
        print(f"\nThe last run with a {side} cache:\n\n{sides[side][-1].said}")


def _large(folder: Path) -> None:
    _large_layout(folder / "layout")
    _project(folder, "oci:layout")
    run = _fledge(folder)
    print(
        f"4 GiB in {run.seconds:.1f} s with at most {mib(run.peak_memory)} of memory\n\n{run.said}"
    )


def _project(folder: Path, image: str) -> None:
    (folder / "agent").write_text("#!/bin/sh\n")
    (folder / "fledge.toml").write_text(f"""
version = "1"
strategy = "oci_rootfs"
[agent]
source_strategy = "local"
path = "agent"
[source]
image = "{image}"
""")


def _fledge(folder: Path) -> Run:
    command = [sys.executable, "-m", "fledge", "build", "-o", "fledge.img"]
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
