"""The table ``[target]``: where an artifact is to run."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class Target(msgspec.Struct, frozen=True):
    """Where the artifact is to run."""

    kernel: Annotated[
        str | None,
        Meta(
            description="The kernel that boots the artifact. A build says what that kernel lacks."
            " debian, firecracker, kata, libkrun or volant, or the path of a kernel image or of a"
            " kernel's .config.",
            examples=["volant"],
            extra={"variables": True},
        ),
    ] = None
