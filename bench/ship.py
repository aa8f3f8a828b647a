"""Push a disk image to a registry and pull it, before and after a change, and compare.

The image gets a layer of 10 MiB on top and a mapped file of 1 KiB, and is built three times: as it
is, with another file, and with another layer. Each is pushed to a docker-registry on this machine,
by fledge and by the Python client of oras, and pulled by fledge. A pull with an empty cache is
compared with a plain HTTP download of the same file that is written sparse. Bytes are counted by a
proxy in between, times are measured without it. --rate measures over a link of that speed, and
needs root.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path

from measure import (
    PYTHON,
    Row,
    Run,
    Way,
    add_image,
    fledge,
    image,
    in_turn,
    main,
    measure,
    write_config,
)

from fledge.tree.content import hash_file
from tests.support import images, registry

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


def benchmark(folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    if arguments.rate:
        _limit(arguments.rate)
    layout, tag = image(arguments)
    for change in CHANGES:
        _build(folder, f"oci:{layout}:{tag}", change)
    with registry.serve(folder / "storage") as host:
        yield from _bytes(folder, host)
        yield from _times(folder, host, arguments)


def _limit(rate: str) -> None:
    """Start again, without --rate, in a network of its own, where loopback has that speed."""
    limit = f"ip link set lo up && tc qdisc add dev lo root tbf rate {rate}"
    others = [each for each in sys.argv if each not in {"--rate", rate}]
    again = shlex.join([sys.executable, *others])
    script = f"{limit} burst 512kb latency 50ms && exec {again}"
    os.execvp("unshare", ["unshare", "--net", "sh", "-c", script])  # noqa: S606


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
    write_config(project, "oci:layout:x", '[mappings]\n"note.txt" = "/etc/note.txt"\n')
    fledge(project, "build", "-o", "web.img", cache="../builds")
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


def _bytes(folder: Path, host: str) -> Iterator[Row]:
    """Count what a push and a pull move after each change."""
    artifact = folder / "first" / "web.img"
    data = artifact.stat().st_blocks * 512
    yield Row("all data of the disk", size=data)
    (folder / "pulled").mkdir()
    for change, title in CHANGES.items():
        moved = {}
        with registry.wire(host) as wire:
            fledge(folder, "push", f"{change}/web.img", f"{wire.host}/counted:1")
            moved["push, MiB"] = wire.sent / (1 << 20)
        with registry.wire(host) as wire:
            fledge(folder, "pull", f"{wire.host}/counted:1", "-o", "pulled")
            moved["pull, MiB"] = wire.received / (1 << 20)
        with registry.wire(host) as wire:
            _oras(folder, wire.host, "counted-oras:1", change)
            moved["oras push, MiB"] = wire.sent / (1 << 20)
        if (
            hash_file(folder / "pulled" / "web.img").digest
            != hash_file(folder / change / "web.img").digest
        ):
            sys.exit("the pulled file differs")
        yield Row(title, extra=moved)


def _times(folder: Path, host: str, arguments: argparse.Namespace) -> Iterator[Row]:
    """Measure how long a push, a pull, and what others do instead take."""
    fledge(folder, "push", "--whole", "first/web.img", f"{host}/whole:1")
    digest = hash_file(folder / "first" / "web.img").digest
    plain = [PYTHON, "-c", DOWNLOAD, f"http://{host}/v2/whole/blobs/{digest}", "plain.img"]
    tags: list[str] = []

    def push(artifact: str) -> Run:
        return fledge(folder, "push", artifact, tags[-1])

    def first_push() -> Run:
        tags.append(f"{host}/timed{len(tags)}:1")  # in a repository that is new in each round
        return push("first/web.img")

    def pull() -> Run:
        return fledge(folder, "pull", tags[-1], "-o", "pulled")

    def first_pull() -> Run:
        shutil.rmtree(folder / "cache", ignore_errors=True)
        return pull()

    def oras() -> Run:
        return _oras(folder, host, f"timed-oras{len(tags)}:1", "first")

    pulled = folder / "pulled" / "web.img"
    peer = metadata.version("oras")
    yield from in_turn(
        arguments,
        [
            Way("fledge push", first_push),
            Way("fledge push, nothing new", lambda: push("first/web.img")),
            Way("fledge push, 1 KiB changed", lambda: push("file/web.img")),
            Way("oras push", oras, peer=peer),
            Way("fledge pull", first_pull, pulled),
            Way("fledge pull, all in the cache", pull, pulled),
            Way(
                "plain HTTP download, sparse",
                partial(measure, plain, folder),
                folder / "plain.img",
                metadata.version("requests"),
            ),
        ],
    )


def _oras(folder: Path, host: str, name: str, change: str) -> Run:
    return measure([PYTHON, "-c", ORAS, host, name, "web.img"], folder / change)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_image(parser)
    parser.add_argument("--rate", help="the speed of the link, as tc(8) takes it")


if __name__ == "__main__":
    main(benchmark, __doc__, add_arguments, runs=3)
