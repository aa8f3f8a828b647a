"""The table ``[cache]``: where builds of the project are shared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta


class BuildCache(msgspec.Struct, frozen=True):
    """A registry with artifacts that were built before. Used by builds with --locked."""

    registry: Annotated[
        str | None,
        Meta(
            description="A repository in which fledge build --locked looks for the artifact before"
            " it builds it. --cache-to REPOSITORY keeps it there. FLEDGE_CACHE_REGISTRY takes"
            " precedence.",
            examples=["ghcr.io/example/cache"],
            extra={"variables": True},
        ),
    ] = None
    trusted: Annotated[
        bool,
        Meta(
            description="Whether to use artifacts from there that nobody has signed. Whoever may"
            " push there then decides what is in the artifact."
        ),
    ] = False
    policy: Annotated[
        Path | None,
        Meta(
            description="The file of a policy: whose signatures an artifact from there needs. It"
            " is for artifacts that are not trusted.",
            examples=["policy.toml"],
        ),
    ] = None
