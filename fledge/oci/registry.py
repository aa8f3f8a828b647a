"""Opens images in a registry."""

from __future__ import annotations

from functools import partial

from fledge.errors import OfflineError
from fledge.oci.image import Image
from fledge.oci.manifest import Descriptor, Platform, make_image, resolve_manifest
from fledge.oci.reference import Name
from fledge.oci.repository import Places, Repository
from fledge.session import Session


def open_image(name: Name, platform: Platform, session: Session) -> Image:
    """Open the image with that name for a platform. Layers are downloaded when they are needed.

    Manifest and config stay in the cache, so a name with a digest can be opened offline.

    The user's mirrors of the registry are asked before it.

    Raises `NetworkError` if the registry does not deliver, `CorruptError` if the image is
    damaged, `ConfigError` if it has no image for the platform. If the registry denies access and a
    login could not be read, raises that error: `ConfigError` for a file, `HostError` for a helper.
    """
    if session.offline and not name.digest:
        raise OfflineError(
            f"{name}: the tag cannot be looked up offline",
            "Pin it with `fledge lock`, or run without --offline.",
        )
    places = Places(name, session)

    def read_manifest(descriptor: Descriptor) -> bytes:
        return places.ask(Repository.read_document, "manifests", "manifest", descriptor)

    raw = places.ask(Repository.read_named_manifest)
    manifest = resolve_manifest(raw, platform, str(name), read_manifest)
    config = places.ask(Repository.read_document, "blobs", "config", manifest.config)
    if name.tag:
        session.cache.remember(f"{name.host}/{name.repository}:{name.tag}")
    count = len(manifest.layers)
    blobs = [
        partial(places.ask, Repository.fetch, "blobs", f"layer {number} of {count}", layer)
        for number, layer in enumerate(manifest.layers, 1)
    ]
    pinned = Name(name.host, name.repository, name.tag, manifest.digest)
    sizes = [layer.size for layer in manifest.layers]
    return make_image(
        str(pinned), config, blobs, platform, manifest.digest, manifest.platform, sizes
    )
