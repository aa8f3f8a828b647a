"""Opens an image that a lock pins, from the cache or from the place that its reference names."""

from __future__ import annotations

from functools import partial

from msgspec.structs import replace

from fledge.errors import ConfigError, CorruptError, FledgeError, NetworkError
from fledge.oci import layout
from fledge.oci.image import Image, ImagePin, once
from fledge.oci.manifest import (
    ANY_ARCHITECTURE,
    Index,
    Platform,
    make_image,
    parse_config,
    parse_manifest,
)
from fledge.oci.reference import DaemonReference, Name, Reference, RegistryReference
from fledge.oci.repository import NoManifestError
from fledge.oci.transports import open_image
from fledge.session import Session
from fledge.tree.content import Span
from fledge.tree.digest import Digest


def open_pinned(
    reference: Reference,
    pin: ImagePin,
    platform: Platform,
    session: Session,
    *,
    trusted: bool = True,
) -> Image:
    """Open exactly the pinned image. The reference is only used for parts that the cache lacks.

    If the pin is not ``trusted``, its manifest is read as well, and must name the pinned config.

    Raises `ConfigError` if the pin contradicts itself, `CorruptError` if the reference names
    another image, `NetworkError` if its registry no longer has the pinned one, and the errors of
    `open_image`.
    """
    where = f"{reference} for {platform}"
    pinned_by = "the lock" if trusted else "the provenance"
    found = once(lambda: _find(reference, pin, platform, session, pinned_by))
    if not trusted and pin.manifest and found().manifest != pin.manifest:
        raise CorruptError(
            f"{where} has the manifest {found().manifest}, not {pin.manifest}",
            "Find out where the digest comes from.",
        )
    if cached := session.cache.find(pin.config):
        config = layout.read_document(cached, where)
    else:
        config = found().config
        session.cache.store(config)
    if parse_config(config, where).diff_ids != pin.diff_ids:
        raise ConfigError(
            f"the diff_ids that {pinned_by} pins for {where} differ from those of its config"
            f" ({pin.config})",
            f"Somebody has edited {pinned_by}: run `fledge lock`, and review what it changes.",
        )

    def blob(number: int) -> Span:
        return found().layers[number].blob()

    blobs = [partial(blob, number) for number in range(len(pin.diff_ids))]
    listed = platform if pin.manifest else None
    sizes = _blob_sizes(pin, session)
    return make_image(_uri(reference, pin), config, blobs, platform, pin.manifest, listed, sizes)


def _blob_sizes(pin: ImagePin, session: Session) -> list[int]:
    """Return the sizes of the layers' blobs, which the pinned manifest has if it is in the cache.

    Opening the image would tell them as well, but asks the registry.
    """
    cached = session.cache.find(pin.manifest) if pin.manifest else None
    if cached is None:
        return []
    manifest = parse_manifest(layout.read_document(cached, str(pin.manifest)), str(pin.manifest))
    if isinstance(manifest, Index) or len(manifest.layers) != len(pin.diff_ids):
        return []  # what fetches the layers says what is wrong
    return [layer.size for layer in manifest.layers]


def _find(
    reference: Reference, pin: ImagePin, platform: Platform, session: Session, pinned_by: str
) -> Image:
    """Open the pinned image from the place that the reference names."""
    where = f"{reference} for {platform}"
    pinned = _at_manifest(reference, pin.manifest)
    # An index has chosen that manifest for the platform, whatever its config says.
    chosen = platform if pinned == reference else ANY_ARCHITECTURE
    try:
        image = open_image(pinned, chosen, session)
    except NoManifestError as missing:
        if not pin.manifest:
            raise
        try:
            now = open_image(reference, platform, session).uri
        except FledgeError as error:
            now = f"nothing ({error.message})"
        raise NetworkError(
            f"{pinned_by} pins {where} at {pin.manifest}, which its registry no longer has;"
            f" the name now stands for {now}",
            "Push the old image again, or run `fledge lock` to take the new one.",
        ) from missing
    actual = Digest.of(image.config)
    if actual != pin.config:
        raise CorruptError(
            f"{pinned_by} pins {where} with config {pin.config}, but {image.uri} has config"
            f" {actual}",
            "Bring the old image back, or run `fledge lock` to take the new one.",
        )
    return image


def _at_manifest(reference: Reference, manifest: Digest | None) -> Reference:
    """Fix a reference to a registry to one manifest. Other references stay as they are."""
    if manifest and isinstance(reference, Name):
        return replace(reference, digest=manifest)
    if manifest and isinstance(reference, RegistryReference):
        return RegistryReference(replace(reference.name, digest=manifest))
    return reference


def _uri(reference: Reference, pin: ImagePin) -> str:
    """Return the `Image.uri` that the image has when it is opened without a pin."""
    if isinstance(reference, RegistryReference):
        reference = reference.name
    if isinstance(reference, Name) and not pin.manifest:
        reference = DaemonReference(reference)  # images from a registry have a manifest
    reference = _at_manifest(reference, pin.manifest)
    by_name = isinstance(reference, Name) or not pin.manifest
    return str(reference) if by_name else f"{reference}@{pin.manifest}"
