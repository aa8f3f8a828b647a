"""Writes software bills of materials in all formats."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from fledge.project.sboms import cyclonedx, spdx
from fledge.project.sboms.inventory import Inventory
from fledge.project.sboms.table import SbomFormat

DOCUMENTS: Mapping[SbomFormat, Callable[[Inventory], dict[str, Any]]] = {
    "spdx": spdx.document,
    "cyclonedx": cyclonedx.document,
}


def serialize(inventory: Inventory, kind: SbomFormat) -> bytes:
    """Return the document of a format that describes an artifact."""
    text = json.dumps(DOCUMENTS[kind](inventory), indent=2)
    return f"{text}\n".encode()
