"""Container images made by the tests: in memory, as an OCI layout, or opened for `fledge.oci`.

All images but that of fixtures/image come from here.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fledge.oci.image import Image, Layer
from fledge.oci.manifest import REF_NAME
from fledge.tree.content import Span
from fledge.tree.digest import Digest

OCI = "application/vnd.oci.image"
DOCKER = "application/vnd.docker"


@dataclass(frozen=True)
class Manifest:
    """A manifest or index, with the blobs and manifests that it names."""

    media_type: str
    body: bytes
    blobs: tuple[bytes, ...] = ()
    """The config and the layers, unless a layer is too large for memory."""
    children: tuple[Manifest, ...] = ()
    platform: dict[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        return sha256(self.body)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": f"sha256:{sha256(data)}", "size": len(data)}


def image(
    *tars: bytes,
    docker: bool = False,
    compressed: bool = True,
    architecture: str = "amd64",
    config: Mapping[str, object] | None = None,
    history: bool = False,
) -> Manifest:
    """Make an image of these layers. Layers of Docker are always compressed.

    ``config`` says how to run it (OCI image-spec, config.md, ``config``). ``history`` adds a
    history, which podman and buildah want of an image that they build on.
    """
    layers = [gzip.compress(tar, 1, mtime=0) if compressed else tar for tar in tars]
    media_type = f"{DOCKER}.image.rootfs.diff.tar" if docker else f"{OCI}.layer.v1.tar"
    if compressed:
        media_type += ".gzip" if docker else "+gzip"
    return manifest(
        [descriptor(media_type, layer) for layer in layers],
        [sha256(tar) for tar in tars],
        layers,
        docker=docker,
        architecture=architecture,
        run=config,
        history=history,
    )


def manifest(
    layers: Sequence[dict[str, object]],
    diff_ids: Sequence[str],
    blobs: Sequence[bytes] = (),
    *,
    docker: bool = False,
    architecture: str = "amd64",
    run: Mapping[str, object] | None = None,
    history: bool = False,
) -> Manifest:
    """Make an image from the descriptors and diff_ids of its layers; ``blobs`` are their bytes."""
    platform = {"os": "linux", "architecture": architecture}
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{each}" for each in diff_ids]}
    more: dict[str, object] = {} if run is None else {"config": run}
    if history:
        more["history"] = [{"created_by": "tests"} for _ in layers]
    config = json.dumps({**platform, **more, "rootfs": rootfs}).encode()
    config_type = f"{DOCKER}.container.image.v1+json" if docker else f"{OCI}.config.v1+json"
    media_type = f"{DOCKER}.distribution.manifest.v2+json" if docker else f"{OCI}.manifest.v1+json"
    body = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": descriptor(config_type, config),
        "layers": layers,
    }
    return Manifest(media_type, json.dumps(body).encode(), (config, *blobs), platform=platform)


def index(*children: Manifest, docker: bool = False) -> Manifest:
    media_type = (
        f"{DOCKER}.distribution.manifest.list.v2+json" if docker else f"{OCI}.index.v1+json"
    )
    manifests = [
        {**descriptor(child.media_type, child.body), "platform": child.platform or None}
        for child in children
    ]
    body = {"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}
    return Manifest(media_type, json.dumps(body).encode(), children=children)


def write_layout(folder: Path, top: Manifest, tag: str | None = None) -> None:
    """Write an OCI layout of one manifest or index, replacing the content of the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    pending = [top]
    while pending:
        each = pending.pop()
        pending += each.children
        for blob in (each.body, *each.blobs):
            (blobs / sha256(blob)).write_bytes(blob)
    entry = descriptor(top.media_type, top.body)
    if tag is not None:
        entry["annotations"] = {REF_NAME: tag}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def opened_layer(folder: Path, tar: bytes, blob: bytes | None = None, **lies: Digest) -> Layer:
    """A layer whose blob is a file in ``folder``: that of ``tar``, by default gzip of it.

    ``lies`` are a digest or diff_id to claim instead of the true one.
    """
    blob = gzip.compress(tar) if blob is None else blob
    path = folder / sha256(blob)
    path.write_bytes(blob)
    digest = lies.get("digest", Digest.of(blob))
    return Layer(lies.get("diff_id", Digest.of(tar)), lambda: Span(path, 0, len(blob), digest))


def opened_image(*layers: Layer) -> Image:
    return Image("oci:test", b"{}", layers)
