"""Images assembled at random from the odd parts of their documents that were found in the field.

Each odd part is one function that changes `Documents` before the image is written. The layers come
from `tests.support.odd_tars`.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pyzstd

from fledge.oci.manifest import CONTAINERD_NAME, REF_NAME
from tests.support.images import DOCKER, OCI, descriptor, sha256
from tests.support.odd_tars import OddLayers, odd_layers
from tests.support.tars import END, block, pack
from tests.support.tars import file as tar_file

SKIPPABLE = b"\x50\x2a\x4d\x18"
"""The magic number of a skippable frame of zstd."""


@dataclass
class Documents:
    """An image before it is written."""

    tars: list[bytes]
    blobs: list[bytes]
    """The tars, compressed."""
    layer_type: str | None = f"{OCI}.layer.v1.tar+gzip"
    config_type: str | None = f"{OCI}.config.v1+json"
    manifest_type: str | None = f"{OCI}.manifest.v1+json"
    config: dict[str, Any] = field(default_factory=dict)
    platform: Any = None
    """In the index."""
    annotations: dict[str, str] | None = None
    """In the index."""
    beside: list[Documents] = field(default_factory=list)
    """Other images in the index."""
    nested: bool = False
    """Whether index.json lists an index that lists the image."""
    no_layers: Any = field(default_factory=list)
    """The list of layers if there are none; None if it is missing."""

    @classmethod
    def make(cls, tars: list[bytes], blobs: list[bytes]) -> Documents:
        diff_ids = [f"sha256:{sha256(tar)}" for tar in tars]
        rootfs = {"type": "layers", "diff_ids": diff_ids}
        config = {"os": "linux", "architecture": "amd64", "rootfs": rootfs}
        return cls(tars, blobs, config=config, platform={"os": "linux", "architecture": "amd64"})


# How a layer is compressed.


def in_members(tar: bytes, chosen: Random) -> bytes:
    cut = chosen.randrange(len(tar))
    return gzip.compress(tar[:cut]) + gzip.compress(b"") + gzip.compress(tar[cut:])


def in_frames(tar: bytes, chosen: Random) -> bytes:
    """As zstd:chunked: one frame for each part, and skippable ones with its table of contents."""
    step = chosen.choice([512, 1000, 4096])
    parts = [tar[start : start + step] for start in range(0, len(tar), step)]
    table = SKIPPABLE + (8).to_bytes(4, "little") + b"contents"
    first = table if chosen.random() < 0.3 else b""
    return first + b"".join(map(pyzstd.compress, parts)) + table + table


def with_long_window(tar: bytes, chosen: Random) -> bytes:
    option: dict[int, int] = {pyzstd.CParameter.windowLog: 27}
    compressor = pyzstd.ZstdCompressor(option)
    return compressor.compress(tar) + compressor.flush()  # without the size of the content


COMPRESSIONS: tuple[Callable[[bytes, Random], bytes], ...] = (
    lambda tar, chosen: gzip.compress(tar, 1, mtime=0),
    lambda tar, chosen: tar,
    lambda tar, chosen: pyzstd.compress(tar),
    in_members,
    in_frames,
    with_long_window,
)
UNKNOWN_TO_CONTAINERD: tuple[Callable[[bytes], bytes], ...] = (lzma.compress, bz2.compress)
"""Docker takes these, podman too."""

# Platforms.


def config_without_architecture(image: Documents, chosen: Random) -> None:
    image.config["architecture"] = ""
    if chosen.random() < 0.5:
        del image.config["architecture"]


def config_without_os(image: Documents, chosen: Random) -> None:
    image.config["os"] = ""
    if chosen.random() < 0.5:
        del image.config["os"]


def config_spelled(image: Documents, chosen: Random) -> None:
    image.config["architecture"] = chosen.choice(["x86_64", "x86-64", "AMD64", "amd64"])
    image.config["os"] = chosen.choice(["linux", "Linux"])
    image.config["variant"] = chosen.choice(["", "v1"])


def config_of_the_builder(image: Documents, chosen: Random) -> None:
    """The index says amd64, the config arm64."""
    image.config["architecture"] = "arm64"


def listed_spelled(image: Documents, chosen: Random) -> None:
    image.platform = {
        "architecture": chosen.choice(["x86_64", "AMD64", "amd64"]),
        "os": chosen.choice(["linux", "Linux"]),
        "variant": chosen.choice(["", "v1"]),
    }


def listed_without_platform(image: Documents, chosen: Random) -> None:
    image.platform = chosen.choice([None, {}, {"architecture": "", "os": ""}])


def listed_without_os(image: Documents, chosen: Random) -> None:
    image.platform = {"architecture": "amd64"}


def beside_an_image_for_arm64(image: Documents, chosen: Random) -> None:
    other = _other_image()
    other.config |= {"architecture": "arm64"}
    other.platform = {"architecture": "arm64", "os": "linux", "variant": chosen.choice(["v8", ""])}
    image.beside.append(other)


def beside_an_image_for_windows(image: Documents, chosen: Random) -> None:
    other = _other_image()
    other.config |= {"os": "windows"}
    other.platform = {"architecture": "amd64", "os": "windows", "os.version": "10.0"}
    image.beside.append(other)


def beside_an_attestation(image: Documents, chosen: Random) -> None:
    other = _other_image()
    other.config |= {"architecture": "unknown", "os": "unknown"}
    other.platform = {"architecture": "unknown", "os": "unknown"}
    other.layer_type = "application/vnd.in-toto+json"
    image.beside.append(other)


def _other_image() -> Documents:
    tar = pack(tar_file("other"))
    return Documents.make([tar], [gzip.compress(tar, 1, mtime=0)])


# Types.


def types_of_docker(image: Documents, chosen: Random) -> None:
    image.layer_type = f"{DOCKER}.image.rootfs.diff.tar.gzip"
    image.config_type = f"{DOCKER}.container.image.v1+json"
    image.manifest_type = f"{DOCKER}.distribution.manifest.v2+json"


def types_mixed(image: Documents, chosen: Random) -> None:
    image.layer_type = f"{DOCKER}.image.rootfs.diff.tar.gzip"


def config_defaulted(image: Documents, chosen: Random) -> None:
    types = ["application/octet-stream", "text/html", "application/json", "", None]
    image.config_type = chosen.choice(types)


def layers_defaulted(image: Documents, chosen: Random) -> None:
    image.layer_type = chosen.choice(["application/octet-stream", "", None])


def layers_mistyped(image: Documents, chosen: Random) -> None:
    kinds = ["", "+gzip", "+zstd"]
    image.layer_type = f"{OCI}.layer.v1.tar{chosen.choice(kinds)}"


def manifest_untyped(image: Documents, chosen: Random) -> None:
    image.manifest_type = None


# Layouts.


def in_a_nested_index(image: Documents, chosen: Random) -> None:
    image.nested = True


def with_names(image: Documents, chosen: Random) -> None:
    image.annotations = {REF_NAME: "latest"}
    if chosen.random() < 0.5:
        image.annotations[CONTAINERD_NAME] = "docker.io/library/a:latest"


def from_scratch(image: Documents, chosen: Random) -> None:
    """No layers, written in the ways of Go."""
    if chosen.random() < 0.7:
        return
    image.tars, image.blobs, image.no_layers = [], [], chosen.choice([[], None])
    image.config["rootfs"] = {"type": "layers", "diff_ids": chosen.choice([[], None])}
    if chosen.random() < 0.3:
        del image.config["rootfs"]["diff_ids"]


def without_rootfs(image: Documents, chosen: Random) -> None:
    if chosen.random() < 0.3:
        image.config.pop("rootfs", None)


def with_more_in_the_config(image: Documents, chosen: Random) -> None:
    image.config |= {
        "config": {"Env": ["PATH=/bin"], "Entrypoint": None, "Labels": {"a": "\u2028"}},
        "history": [{"created_by": "x", "empty_layer": True}],
        "unknown": 1,
    }


OddDocument = Callable[[Documents, Random], None]
ODD_DOCUMENTS: tuple[OddDocument, ...] = (
    *(config_without_architecture, config_without_os, config_spelled, config_of_the_builder),
    *(listed_spelled, listed_without_platform, listed_without_os, beside_an_image_for_arm64),
    *(beside_an_image_for_windows, beside_an_attestation, types_of_docker, types_mixed),
    *(config_defaulted, layers_defaulted, layers_mistyped, manifest_untyped),
    *(in_a_nested_index, with_names, with_more_in_the_config, from_scratch, without_rootfs),
)


@dataclass(frozen=True)
class OddImage:
    layers: OddLayers
    plain: Documents
    """The same layers in an image without anything odd about it."""
    odd: Documents
    parts: list[str]
    """What is odd about the documents and the compression."""


def odd_image(seed: int, layers: OddLayers | None = None) -> OddImage:
    """Make an image of these layers, or of odd ones."""
    chosen = Random(seed)  # noqa: S311 -- to make it again, not to keep a secret
    layers = layers or odd_layers(chosen)
    plain = Documents.make(layers.tars, [gzip.compress(tar, 1, mtime=0) for tar in layers.tars])
    plain.annotations = {REF_NAME: "latest"}
    odd, parts = deepcopy(plain), list[str]()
    odd.annotations = None
    if chosen.random() < 0.1:
        odd.blobs = [chosen.choice(UNKNOWN_TO_CONTAINERD)(tar) for tar in layers.tars]
        parts.append("xz or bz2")
    elif chosen.random() < 0.7:
        odd.blobs = [chosen.choice(COMPRESSIONS)(tar, chosen) for tar in layers.tars]
        parts.append("compressions")
    for part in chosen.sample(ODD_DOCUMENTS, chosen.choice([0, 1, 1, 2, 3])):
        part(odd, chosen)
        parts.append(part.__name__)
    return OddImage(layers, plain, odd, parts)


def files(image: Documents) -> dict[str, bytes]:
    """The files of an OCI layout of the image."""
    made: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    annotated = {"annotations": image.annotations} if image.annotations else {}
    own = {} if image.nested else annotated
    entries = [_add(each, made) | own for each in [*image.beside, image]]
    index_type = f"{OCI}.index.v1+json"
    top = {"schemaVersion": 2, "mediaType": index_type, "manifests": entries}
    if image.nested:
        inner = json.dumps(top).encode()
        _add_blob(made, inner)
        outer = descriptor(index_type, inner) | annotated
        top = {"schemaVersion": 2, "manifests": [outer]}
    return made | {"index.json": json.dumps(top).encode()}


def _add(image: Documents, made: dict[str, bytes]) -> dict[str, Any]:
    """Add the blobs of an image; return its descriptor."""
    config = json.dumps(image.config).encode()
    layers = [_typed(image.layer_type, blob) for blob in image.blobs] or image.no_layers
    document = {
        "schemaVersion": 2,
        "mediaType": image.manifest_type,
        "config": _typed(image.config_type, config),
        "layers": layers,
    }
    if image.manifest_type is None:
        del document["mediaType"]
    manifest = json.dumps(document).encode()
    for blob in (manifest, config, *image.blobs):
        _add_blob(made, blob)
    listed: dict[str, Any] = descriptor(image.manifest_type or f"{OCI}.manifest.v1+json", manifest)
    if image.platform is not None:
        listed["platform"] = image.platform
    return listed


def _typed(media_type: str | None, data: bytes) -> dict[str, Any]:
    described: dict[str, Any] = descriptor(media_type or "", data)
    if media_type is None:
        del described["mediaType"]
    return described


def _add_blob(made: dict[str, bytes], data: bytes) -> None:
    made[f"blobs/sha256/{sha256(data)}"] = data


def docker_files(image: Documents) -> dict[str, bytes]:
    """The files of ``docker save``, whose layers may be compressed."""
    config = json.dumps(image.config).encode()
    names = [f"{number}/layer.tar" for number in range(len(image.blobs))]
    listed = [{"Config": f"{sha256(config)}.json", "RepoTags": ["a:latest"], "Layers": names}]
    return {
        f"{sha256(config)}.json": config,
        **dict(zip(names, image.blobs, strict=True)),
        "manifest.json": json.dumps(listed).encode(),
    }


def write_folder(folder: Path, made: dict[str, bytes]) -> None:
    for name, data in made.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def archive(made: dict[str, bytes]) -> bytes:
    """A tar of the files."""
    return b"".join(block(name.encode(), data) for name, data in made.items()) + END
