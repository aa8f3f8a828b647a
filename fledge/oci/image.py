"""The type of an opened image, whatever transport it comes from.

The modules registry, daemon, layout and archive each open an `Image`. The code that uses it does
not depend on the transport.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec

from fledge.tree.content import Span
from fledge.tree.digest import Digest


class Layer(msgspec.Struct, frozen=True):
    """One layer of an image: a tar, which may be compressed."""

    diff_id: Digest
    """The digest of the uncompressed tar, from the image's config."""
    blob: Callable[[], Span]
    """Fetches the layer's blob and returns its place on this machine.

    If the image has a manifest, the span has the digest from it, so reading the span to its end
    verifies it. Any thread may call it. Raises `FledgeError`.
    """


class Image(msgspec.Struct, frozen=True):
    """An image for one platform."""

    uri: str
    """The reference that it was opened by, with the manifest's digest if there is one."""
    config: bytes
    """The config, byte for byte (OCI image-spec, config.md)."""
    layers: tuple[Layer, ...]
    """Lowest first."""
    manifest: Digest | None = None
    """The digest of its manifest; None if the transport has no manifests."""
    note: str = ""
    """What is odd about the image, for the person who builds with it; empty if nothing is."""


class ImagePin(msgspec.Struct, frozen=True):
    """The digests that pin an image for one platform to the byte."""

    manifest: Digest | None
    """The digest to request from a registry; None if the transport has no manifests."""
    config: Digest
    """The digest of the config, which identifies the image for every transport."""
    diff_ids: tuple[Digest, ...]
    """The digests of the uncompressed layers, lowest first, as in the config."""


def once(make: Callable[[], Image]) -> Callable[[], Image]:
    """Return a function that calls ``make`` at most once, even if several threads call it.

    If ``make`` raises an exception, the next call tries again.
    """
    lock = threading.Lock()
    made: list[Image] = []

    def get() -> Image:
        with lock:
            if not made:
                made.append(make())
            return made[0]

    return get
