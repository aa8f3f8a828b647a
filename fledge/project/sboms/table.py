"""The table ``[sbom]``, and the formats of a software bill of materials."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from fledge.sources.ownfiles import CYCLONEDX_SUFFIX, SPDX_SUFFIX

SbomFormat = Literal["spdx", "cyclonedx"]
"""The name of a format in fledge.toml."""

MAX_SBOM_SIZE = 128 << 20
"""Maximum bytes of a document. 100,000 packages have about half of them."""


class FormatFacts(msgspec.Struct, frozen=True):
    """How files of a format are told from others."""

    title: str
    suffix: str
    """What follows the whole name of the artifact."""
    media_type: str
    """Its type in a registry."""
    start: bytes
    """What all documents of fledge begin with."""


SBOM_FORMATS: Mapping[SbomFormat, FormatFacts] = {
    "spdx": FormatFacts(
        "SPDX", SPDX_SUFFIX, "application/spdx+json", b'{\n  "SPDXID": "SPDXRef-DOCUMENT",\n'
    ),
    "cyclonedx": FormatFacts(
        "CycloneDX",
        CYCLONEDX_SUFFIX,
        "application/vnd.cyclonedx+json",
        b'{\n  "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",\n',
    ),
}
"""All formats. Media types are those that IANA has registered for them."""


class Sbom(msgspec.Struct, frozen=True):
    """Lists the software in the artifact, in files beside it: packages of the image, and what
    fledge added.
    """

    formats: Annotated[
        tuple[SbomFormat, ...],
        Meta(
            description="The formats to write: SPDX 2.3 in ARTIFACT.spdx.json, CycloneDX 1.6 in"
            " ARTIFACT.cdx.json.",
            examples=[["spdx"], ["spdx", "cyclonedx"]],
        ),
    ]


def path_beside(artifact: Path, kind: SbomFormat) -> Path:
    """Return the path of an artifact's document in a format."""
    return artifact.parent / f"{artifact.name}{SBOM_FORMATS[kind].suffix}"
