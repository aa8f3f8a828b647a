"""Formats artifacts as JSON, for ``fledge build --json``."""

from __future__ import annotations

import json
from collections.abc import Iterable

import msgspec

from fledge.operations.build import Artifact, Beside
from fledge.project.manifest import path_beside
from fledge.sources.inputs import Input


def as_text(document: object) -> str:
    """Format a JSON document."""
    return json.dumps(document, indent=2)


def as_object(artifact: Artifact) -> dict[str, object]:
    """Return the JSON object of an artifact."""
    return {
        "path": str(artifact.path),
        "size": artifact.size,
        "sha256": artifact.digest.hex,
        "root_hash": artifact.root_hash.hex if artifact.root_hash else None,
        "manifest": str(path_beside(artifact.path)) if artifact.manifest else None,
        **beside_as_object(artifact.beside),
        "inputs": inputs_as_list(artifact.inputs),
    }


def beside_as_object(found: Beside) -> dict[str, str | None]:
    """Return the paths of the files beside an artifact, None for those that are not there."""
    paths = msgspec.structs.asdict(found)
    return {name: str(path) if path else None for name, path in paths.items()}


def inputs_as_list(inputs: Iterable[Input]) -> list[dict[str, str]]:
    """Return the JSON list of inputs."""
    return [{"role": item.role, "uri": item.uri, "sha256": item.digest.hex} for item in inputs]
