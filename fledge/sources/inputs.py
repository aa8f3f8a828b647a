"""The record of an input, as provenance stores it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from fledge.tree.digest import Digest


class Input(msgspec.Struct, frozen=True):
    """One input of an artifact, as provenance records it."""

    role: str
    """The role of its source, such as ``image``; ``mapping`` for a mapped file."""
    uri: str
    """A URL, or a path relative to the folder of fledge.toml."""
    digest: Digest
    """The digest of the content. For an image, the digest of its config, which pins the layers by
    their diff_ids."""
    facts: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """Further facts that pin or describe the input, as JSON values."""
