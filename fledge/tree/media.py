"""The media types of artifacts in registries."""

from __future__ import annotations

import msgspec


class MediaType(msgspec.Struct, frozen=True):
    """What a registry calls a whole artifact of some format."""

    name: str
    """The media type of its blob."""
    os_features: tuple[str, ...] = ()
    """What a host must have to use it, in an image index (image-spec, image-index.md)."""
