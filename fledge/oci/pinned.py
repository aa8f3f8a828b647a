"""An image that a lock pins, from the cache or from wherever its reference leads."""

from __future__ import annotations

import hashlib
from functools import partial

from msgspec.structs import replace

from fledge.errors import ConfigError, CorruptError, FledgeError, NetworkError
from fledge.net.fetch import Fetcher
from fledge.oci import layout, registry
from fledge.oci.image import Image, once
from fledge.oci.manifest import Platform, make_image, parse_config
from fledge.oci.places import open_image
from fledge.oci.reference import InDaemon, InRegistry, Name, Reference
from fledge.project.lock import ImagePin
from fledge.tree.content import Span


def open_pinned(reference: Reference, pin: ImagePin, platform: Platform, fetcher: Fetcher) -> Image:
    """The image of that pin and no other; what the cache has of it is looked for nowhere else.

    Raises `ConfigError` if the pin contradicts itself, `CorruptError` if the reference stands
    for another image, `NetworkError` if its registry does not have that one any more, and what
    `open_image` raises.
    """
    where = f"{reference} for {platform}"
    found = once(lambda: _find(reference, pin, platform, fetcher))
    if kept := fetcher.cache.find(pin.config):
        config = layout.read_document(kept, where)
    else:
        config = found().config
        fetcher.cache.store(config)
    if parse_config(config, where).diff_ids != pin.diff_ids:
        raise ConfigError(
            f"the lock pins {where} with other diff_ids than its config (sha256:{pin.config}) has",
            "Somebody has edited the lock: run `fledge lock`, and review what it changes.",
        )

    def blob(number: int) -> Span:
        return found().layers[number].blob()

    blobs = [partial(blob, number) for number in range(len(pin.diff_ids))]
    return make_image(_uri(reference, pin), config, blobs, platform, pin.manifest)


def _find(reference: Reference, pin: ImagePin, platform: Platform, fetcher: Fetcher) -> Image:
    """The image from where it lives."""
    where = f"{reference} for {platform}"
    try:
        image = open_image(_at_manifest(reference, pin.manifest), platform, fetcher)
    except registry.NoManifestError:
        if not pin.manifest:
            raise
        try:
            now = open_image(reference, platform, fetcher).uri
        except FledgeError as error:
            now = f"nothing ({error.message})"
        raise NetworkError(
            f"the lock pins {where} at sha256:{pin.manifest}, which its registry does not"
            f" have any more; the name stands for {now} now",
            "Push the old image again, or run `fledge lock` to take the new one.",
        ) from None
    actual = hashlib.sha256(image.config).hexdigest()
    if actual != pin.config:
        raise CorruptError(
            f"the lock pins {where} with config sha256:{pin.config}, but {image.uri} has config"
            f" sha256:{actual}",
            "Bring the old image back, or run `fledge lock` to take the new one.",
        )
    return image


def _at_manifest(reference: Reference, manifest: str | None) -> Reference:
    """What only that manifest can answer; elsewhere than in a registry the config tells."""
    if manifest and isinstance(reference, Name):
        return replace(reference, sha256=manifest)
    if manifest and isinstance(reference, InRegistry):
        return InRegistry(replace(reference.name, sha256=manifest))
    return reference


def _uri(reference: Reference, pin: ImagePin) -> str:
    """What `Image.uri` is without a pin, wherever the parts of this image come from."""
    if isinstance(reference, InRegistry):
        reference = reference.name
    if isinstance(reference, Name) and not pin.manifest:
        reference = InDaemon(reference)  # a registry would have had one
    reference = _at_manifest(reference, pin.manifest)
    by_name = isinstance(reference, Name) or not pin.manifest
    return str(reference) if by_name else f"{reference}@sha256:{pin.manifest}"
