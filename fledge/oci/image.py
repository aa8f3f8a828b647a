"""An image, the same from whatever place it comes.

The modules beside this one (registry, daemon, layout, archive) each open an `Image`; nothing
after them can tell which it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec

from fledge.tree.content import Span


class Layer(msgspec.Struct, frozen=True):
    """One layer: a tar, perhaps compressed."""

    diff_id: str
    """SHA-256 (hex) of the uncompressed tar, as the image's config has it."""
    blob: Callable[[], Span]
    """Gets the blob onto this machine and says where it is.

    The span has the digest that the manifest promises, if there is a manifest; whoever reads
    it to its end has verified it. May be called from another thread than the one that opened
    the image. Raises `FledgeError`.
    """


class Image(msgspec.Struct, frozen=True):
    """What a reference stands for on one platform."""

    uri: str
    """Where it came from, with the manifest's digest where there is one; for people."""
    config: bytes
    """The config, byte for byte (OCI image-spec, config.md)."""
    layers: tuple[Layer, ...]
    """Lowest first."""
    manifest: str | None = None
    """The digest (hex) of its manifest, if there is one where it came from."""


def once(make: Callable[[], Image]) -> Callable[[], Image]:
    """What threads that need the same image call; the first makes it, the others wait."""
    lock = threading.Lock()
    made: list[Image] = []

    def get() -> Image:
        with lock:
            if not made:
                made.append(make())
            return made[0]

    return get
