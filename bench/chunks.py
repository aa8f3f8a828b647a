"""Measure how much of an artifact is new after one change, by the size of its chunks.

fledge builds the image with a layer of 10 MiB, an agent and mapped files over it. For each change
it builds it again, and the chunks that the first artifact does not have are new. Chunks of zeros
count nowhere; shares are of the bytes of all other chunks.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import random
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import zstandard
from measure import Row, add_image, fledge, image, main

from fledge.oci.manifest import REF_NAME
from fledge.tree.content import hash_file
from tests.support import images, tars

BLOCK = 4 << 10
SIZES = (BLOCK, 16 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 4 << 20)
"""Bytes in a chunk."""

UPPER_FILES = 200
UPPER_SIZE = 10 << 20
AGENT_SIZE = 6 << 20
LEVEL = 3
"""The level of zstd."""


@dataclass(frozen=True)
class Layer:
    """A layer in a file of its own."""

    path: Path
    media_type: str
    diff_id: str


@dataclass(frozen=True)
class Inputs:
    """Everything that an artifact is built from."""

    layers: tuple[Layer, ...]
    architecture: str
    upper: bytes
    """The tar of the uppermost layer."""
    agent: bytes
    mapped: dict[str, bytes]


def benchmark(folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    inputs = _inputs(*image(arguments))
    built = _build(folder, inputs)
    before = _hashes(built)
    chunks = {size: list(_chunks(before, size)) for size in SIZES}
    in_all = {f"{_size(size)}, %": float(len(each)) for size, each in chunks.items()}
    packed = {f"{_size(size)}, %": _compressed(built, size) / (1 << 20) for size in SIZES}
    yield Row("chunks in all", size=built.stat().st_size, extra=in_all)
    yield Row("MiB of them by zstd", extra=packed)
    for title, change in CHANGES.items():
        after = _hashes(_build(folder, change(folder, inputs)))
        shares = {
            f"{_size(size)}, %": 100 * _new(set(chunks[size]), list(_chunks(after, size)))
            for size in SIZES
        }
        yield Row(title, extra=shares)


def _inputs(layout: Path, tag: str) -> Inputs:
    index = json.loads((layout / "index.json").read_bytes())
    [found] = (
        each["digest"]
        for each in index["manifests"]
        if each.get("annotations", {}).get(REF_NAME) == tag
    )
    manifest = json.loads(_blob(layout, found).read_bytes())
    config = json.loads(_blob(layout, manifest["config"]["digest"]).read_bytes())
    layers = tuple(
        Layer(_blob(layout, each["digest"]), each["mediaType"], diff_id.removeprefix("sha256:"))
        for each, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True)
    )
    mapped = {f"{number:02}.conf": _noise(f"mapped {number}", 1 << 10) for number in range(20)}
    agent = b"#!/bin/sh\n" + _noise("agent", AGENT_SIZE)
    return Inputs(layers, config["architecture"], _upper(0, 0), agent, mapped)


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / "sha256" / digest.removeprefix("sha256:")


def _noise(seed: str, size: int) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311


def _upper(version: int, growth: int) -> bytes:
    """The tar of a layer, of which every fourth file is ``growth`` bytes longer."""
    size = UPPER_SIZE // UPPER_FILES
    return tars.pack(
        *(
            tars.file(
                f"app/{number:03}",
                _noise(f"app {version} {number}", size + (0 if number % 4 else growth)),
            )
            for number in range(UPPER_FILES)
        )
    )


def _map(name: str, data: bytes) -> Callable[[Path, Inputs], Inputs]:
    """A change of one mapped file."""
    return lambda _, inputs: replace(inputs, mapped={**inputs.mapped, name: data})


def _other_agent(_: Path, inputs: Inputs) -> Inputs:
    return replace(inputs, agent=b"#!/bin/sh\n" + _noise("another", AGENT_SIZE + 100_000))


def _other_upper(_: Path, inputs: Inputs) -> Inputs:
    return replace(inputs, upper=_upper(1, 3000))


def _other_base(folder: Path, inputs: Inputs) -> Inputs:
    """Every fiftieth file of the lowest layer changed and grown, as packages do, and one more."""
    lowest, *others = inputs.layers
    path = folder / "base"
    with (
        gzip.open(lowest.path) as old,
        tarfile.open(fileobj=old, mode="r|") as entries,
        tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as new,
    ):
        for entry in entries:
            if entry.isreg() and zlib.crc32(entry.name.encode()) % 50 == 0:
                _add(new, entry, _noise(entry.name, entry.size + entry.size // 50 + 100))
            else:
                new.addfile(entry, entries.extractfile(entry) if entry.isreg() else None)
        _add(new, tarfile.TarInfo("usr/bin/a-new-program"), _noise("new", 50_000))
    changed = Layer(path, f"{images.OCI}.layer.v1.tar", hash_file(path).digest.hex)
    return replace(inputs, layers=(changed, *others))


def _add(tar: tarfile.TarFile, entry: tarfile.TarInfo, data: bytes) -> None:
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


CHANGES: dict[str, Callable[[Path, Inputs], Inputs]] = {
    "a mapped file of 1 KiB changed": _map("07.conf", _noise("changed", 1 << 10)),
    "it grown to two blocks": _map("07.conf", _noise("grown", 5 << 10)),
    "a mapped file more": _map("075.conf", _noise("more", 1 << 10)),
    "the agent replaced": _other_agent,
    "the upper layer of 10 MiB changed": _other_upper,
    "a new base": _other_base,
}


def _build(folder: Path, inputs: Inputs) -> Path:
    """Write the inputs below ``folder``, and build an artifact from them."""
    (folder / "upper").write_bytes(inputs.upper)
    upper = Layer(
        folder / "upper", f"{images.OCI}.layer.v1.tar", hash_file(folder / "upper").digest.hex
    )
    layers = (*inputs.layers, upper)
    blobs = {hash_file(layer.path).digest.hex: layer for layer in layers}
    listed: list[dict[str, object]] = [
        {
            "mediaType": layer.media_type,
            "digest": f"sha256:{digest}",
            "size": layer.path.stat().st_size,
        }
        for digest, layer in blobs.items()
    ]
    top = images.manifest(
        listed, [layer.diff_id for layer in layers], architecture=inputs.architecture
    )
    images.write_layout(folder / "layout", top)
    for digest, layer in blobs.items():
        os.link(layer.path, folder / "layout" / "blobs" / "sha256" / digest)
    (folder / "agent").write_bytes(inputs.agent)
    (folder / "mapped").mkdir(exist_ok=True)
    for each in (folder / "mapped").iterdir():
        each.unlink()
    for name, data in inputs.mapped.items():
        (folder / "mapped" / name).write_bytes(data)
    (folder / "fledge.toml").write_text("""
version = "1"
strategy = "oci_rootfs"
[agent]
source_strategy = "local"
path = "agent"
[source]
image = "oci:layout"
[mappings]
"mapped" = "/etc/plugin"
""")
    fledge(folder, "build", "-o", "fledge.img")
    return folder / "fledge.img"


def _hashes(image: Path) -> list[int]:
    """The hash of each block; 0 for zeros."""
    zeros = bytes(BLOCK)
    found = []
    with image.open("rb") as file:
        while block := file.read(BLOCK):
            found.append(0 if block == zeros else hash(block))
    return found


def _chunks(hashes: list[int], size: int) -> Iterator[tuple[int, ...]]:
    """The chunks that are not all zeros, as the hashes of their blocks."""
    blocks = size // BLOCK
    for start in range(0, len(hashes), blocks):
        chunk = tuple(hashes[start : start + blocks])
        if any(chunk):
            yield chunk


def _new(old: set[tuple[int, ...]], chunks: list[tuple[int, ...]]) -> float:
    """The share of the chunks that are not among the old ones."""
    return sum(chunk not in old for chunk in chunks) / len(chunks)


def _compressed(image: Path, size: int) -> int:
    """The bytes of all chunks, each compressed."""
    compressor = zstandard.ZstdCompressor(LEVEL)
    total = 0
    with image.open("rb") as file:
        while chunk := file.read(size):
            if any(chunk):
                total += len(compressor.compress(chunk))
    return total


def _size(size: int) -> str:
    return f"{size >> 10} KiB" if size < 1 << 20 else f"{size >> 20} MiB"


if __name__ == "__main__":
    main(benchmark, __doc__, add_image, runs=1)
