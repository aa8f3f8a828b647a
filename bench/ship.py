"""Push a disk image to a registry and pull it, before and after a change, and compare.

    bench/ship.py oci:DIR:TAG
    bench/ship.py oci:DIR:TAG --rate 1gbit     over a link of that speed; needs root

The image gets a layer of 10 MiB on top and a mapped file of 1 KiB, and is built three times: as it
is, with another file, and with another layer. Each is pushed to a docker-registry on this machine,
by fledge and by the Python client of oras, and pulled by fledge. A pull with an empty cache is
compared with a plain HTTP download of the same file that is written sparse. Bytes are counted by a
proxy in between, times are measured without it. Compare only the figures of one run.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shlex
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

RUNS = 3
LAYER_FILES = 40
LAYER_FILE_SIZE = 256 << 10
FILE_SIZE = 1 << 10

CHANGES = {
    "first": "all of it, the first time",
    "file": "one mapped file of 1 KiB changed",
    "layer": "an upper layer of 10 MiB changed",
}

ORAS = """
import sys
from oras.provider import Registry
registry = Registry(hostname=sys.argv[1], insecure=True)
registry.push(target=f"{sys.argv[1]}/{sys.argv[2]}", files=[sys.argv[3]])
"""

DOWNLOAD = """
import os, sys
import requests
zeros = bytes(1 << 16)
response = requests.get(sys.argv[1], stream=True, timeout=60)
with response, open(sys.argv[2], "wb") as file:
    for piece in response.iter_content(1 << 20):
        for start in range(0, len(piece), 1 << 16):
            part = piece[start : start + (1 << 16)]
            if part == zeros:
                file.seek(len(part), os.SEEK_CUR)
            else:
                file.write(part)
    file.truncate()
    file.flush()
    os.fsync(file.fileno())
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", help="oci:DIR:TAG, such as scripts/debian-image makes it")
    parser.add_argument("--rate", help="the speed of the link, as tc(8) takes it")
    arguments = parser.parse_args()
    if arguments.rate:
        # In a network of its own, where loopback has that speed.
        limit = f"ip link set lo up && tc qdisc add dev lo root tbf rate {arguments.rate}"
        again = shlex.join([sys.executable, *sys.argv[:1], arguments.image])
        script = f"{limit} burst 512kb latency 50ms && exec {again}"
        os.execvp("unshare", ["unshare", "--net", "sh", "-c", script])  # noqa: S606
    (CHECKOUT / ".cache").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CHECKOUT / ".cache") as name:
        folder = Path(name)
        for change in CHANGES:
            _build(folder, arguments.image, change)
        with registry.serve(folder / "storage") as host:
            _compare_bytes(folder, host)
            _compare_times(folder, host)


def _build(folder: Path, image: str, change: str) -> None:
    """Build the image with one change: ``CHANGE/web.img``."""
    project = folder / change
    project.mkdir()
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", "--quiet", image, f"oci:{project / 'layout'}:x"],
        check=True,
    )
    _add_layer(project / "layout", seed=change == "layer")
    noise = random.Random(change == "file")  # noqa: S311 - no secret
    (project / "note.txt").write_bytes(noise.randbytes(FILE_SIZE // 2).hex().encode())
    (project / "agent").write_text("#!/bin/sh\n")
    (project / "fledge.toml").write_text("""
version = "1"
strategy = "oci_rootfs"
[agent]
source_strategy = "local"
path = "agent"
[source]
image = "oci:layout:x"
[mappings]
"note.txt" = "/etc/note.txt"
""")
    command = [sys.executable, "-m", "fledge", "build", "-o", "web.img"]
    measure(command, project, {"FLEDGE_CACHE_DIR": str(folder / "builds")})
    shutil.rmtree(project / "layout")


def _add_layer(layout: Path, seed: int) -> None:
    """Add a layer of files that do not compress much to the image of a layout."""
    noise = random.Random(seed)  # noqa: S311 - no secret
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for number in range(LAYER_FILES):
            header = tarfile.TarInfo(f"opt/app/file{number}")
            header.size = LAYER_FILE_SIZE
            tar.addfile(header, io.BytesIO(noise.randbytes(LAYER_FILE_SIZE)))
    blobs = layout / "blobs" / "sha256"
    index = json.loads((layout / "index.json").read_bytes())
    manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_bytes())
    config = json.loads((blobs / manifest["config"]["digest"][7:]).read_bytes())
    layer = packed.getvalue()
    config["rootfs"]["diff_ids"].append(f"sha256:{images.sha256(layer)}")
    config.get("history", []).append({"created_by": "bench"})
    manifest["layers"].append(images.descriptor(f"{images.OCI}.layer.v1.tar", layer))
    text = json.dumps(config).encode()
    manifest["config"] = images.descriptor(manifest["config"]["mediaType"], text)
    top = json.dumps(manifest).encode()
    index["manifests"][0] |= images.descriptor(f"{images.OCI}.manifest.v1+json", top)
    for blob in (layer, text, top):
        (blobs / images.sha256(blob)).write_bytes(blob)
    (layout / "index.json").write_text(json.dumps(index))


def _compare_bytes(folder: Path, host: str) -> None:
    """Print what a push and a pull move after each change."""
    artifact = folder / "first" / "web.img"
    data = artifact.stat().st_blocks * 512
    print(f"{mib(artifact.stat().st_size)}, of which {mib(data)} are data; shares are of these\n")
    print("| | push | pull | oras push |")
    print("| --- | ---: | ---: | ---: |")
    cache = {"FLEDGE_CACHE_DIR": str(folder / "cache")}
    (folder / "pulled").mkdir()
    for change, title in CHANGES.items():
        moved = []
        with registry.wire(host) as wire:
            _fledge(folder, cache, "push", f"{change}/web.img", f"{wire.host}/counted:1")
            moved.append(wire.sent)
        with registry.wire(host) as wire:
            _fledge(folder, cache, "pull", f"{wire.host}/counted:1", "-o", "pulled")
            moved.append(wire.received)
        with registry.wire(host) as wire:
            _oras(folder, wire.host, "counted-oras:1", change)
            moved.append(wire.sent)
        if (
            hash_file(folder / "pulled" / "web.img").digest
            != hash_file(folder / change / "web.img").digest
        ):
            sys.exit("the pulled file differs")
        cells = [f"{mib(count)} ({count / data:.1%})" for count in moved]
        print(f"| {title} | {' | '.join(cells)} |")
    print()


def _compare_times(folder: Path, host: str) -> None:
    """Print how long a push, a pull, and what others do instead take."""
    sides: dict[str, list[Run]] = {}

    def add(side: str, run: Run) -> None:
        sides.setdefault(side, []).append(run)

    cache = {"FLEDGE_CACHE_DIR": str(folder / "cache")}
    _fledge(folder, cache, "push", "--whole", "first/web.img", f"{host}/whole:1")
    digest = hash_file(folder / "first" / "web.img").digest
    url = f"http://{host}/v2/whole/blobs/{digest}"
    for number in range(RUNS):
        tag = f"{host}/timed{number}:1"
        add("fledge push", _fledge(folder, cache, "push", "first/web.img", tag))
        add("fledge push, nothing new", _fledge(folder, cache, "push", "first/web.img", tag))
        add("fledge push, 1 KiB changed", _fledge(folder, cache, "push", "file/web.img", tag))
        add("oras push", _oras(folder, host, f"timed-oras{number}:1", "first"))
        shutil.rmtree(folder / "cache", ignore_errors=True)
        (folder / "pulled" / "web.img").unlink(missing_ok=True)
        add("fledge pull", _fledge(folder, cache, "pull", tag, "-o", "pulled"))
        add("fledge pull, all in the cache", _fledge(folder, cache, "pull", tag, "-o", "pulled"))
        (folder / "plain.img").unlink(missing_ok=True)
        plain = [sys.executable, "-c", DOWNLOAD, url, "plain.img"]
        add("plain HTTP download, sparse", measure(plain, folder, {}))
    print(f"{RUNS} runs of each, medians, {os.cpu_count()} cores:\n")
    print("| | time | processor time | peak memory |")
    print("| --- | ---: | ---: | ---: |")
    for side, runs in sides.items():
        cells = [
            f"{statistics.median(run.seconds for run in runs):.2f} s",
            f"{statistics.median(run.cpu_seconds for run in runs):.2f} s",
            mib(statistics.median(run.peak_memory for run in runs)),
        ]
        print(f"| {side} | {' | '.join(cells)} |")


def _fledge(folder: Path, cache: dict[str, str], *arguments: str) -> Run:
    return measure([sys.executable, "-m", "fledge", *arguments], folder, cache)


def _oras(folder: Path, host: str, name: str, change: str) -> Run:
    command: Sequence[str] = [sys.executable, "-c", ORAS, host, name, "web.img"]
    return measure(command, folder / change, {})


if __name__ == "__main__":
    main()
