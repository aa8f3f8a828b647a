"""The table ``[verity]``: a disk that is sealed by dm-verity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Place = Literal["appended", "beside"]
"""Where the hash tree is."""


def is_beside(config: Mapping[str, object]) -> bool:
    """Return whether a parsed fledge.toml, which may be anything, puts the hash tree beside."""
    table = config.get("verity")
    return isinstance(table, dict) and table.get("hash_tree") == "beside"


class Verity(msgspec.Struct, frozen=True):
    """Seals a read-only disk by dm-verity: a kernel that knows its root hash reads nothing else
    than what was built. The table may be empty.
    """

    hash_tree: Annotated[
        Place,
        Meta(
            description="Where the hash tree is: appended to the artifact, or beside it in"
            " ARTIFACT.verity, for a disk of its own."
        ),
    ] = "appended"
    certificate: Annotated[
        Path | None,
        Meta(
            description="The X.509 certificate, in PEM, of the key that signs builds (--sign-with)."
            " The root hash is then signed as well, for the keyring of a kernel:"
            " ARTIFACT.roothash.p7s.",
            examples=["verity.crt"],
        ),
    ] = None

    @property
    def is_beside(self) -> bool:
        """Whether the hash tree is in a file of its own."""
        return self.hash_tree == "beside"
