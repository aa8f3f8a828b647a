"""Writes software bills of materials in all formats."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from fledge.errors import CorruptError
from fledge.project.sboms import cyclonedx, spdx
from fledge.project.sboms.inventory import Inventory
from fledge.project.sboms.table import MAX_SBOM_SIZE, SbomFormat
from fledge.report import human_size

DOCUMENTS: Mapping[SbomFormat, Callable[[Inventory], dict[str, Any]]] = {
    "spdx": spdx.document,
    "cyclonedx": cyclonedx.document,
}


def serialize(inventory: Inventory, kind: SbomFormat) -> bytes:
    """Return the document of a format that describes an artifact.

    Raises `CorruptError` if it is too large to be read again.
    """
    text = json.dumps(DOCUMENTS[kind](inventory), indent=2)
    if len(text) >= MAX_SBOM_SIZE:
        raise CorruptError(
            f"the SBOM of {inventory.name} would have more than {human_size(MAX_SBOM_SIZE)}",
            "The image lists software with names that no real software has. Leave out [sbom].",
        )
    return f"{text}\n".encode()
