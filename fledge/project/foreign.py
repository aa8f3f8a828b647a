"""Answers to what the original fledge has and this one has not, or has in another way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DOCKERFILE = (
    "fledge builds no Dockerfile; build it with docker build -t NAME or podman build -t NAME, and"
    ' write image = "NAME" in [source]'
)

_KEYS: Mapping[tuple[str, str], str] = {
    ("source", "dockerfile"): DOCKERFILE,
    ("source", "context"): "it is an argument of docker build; remove it",
    ("source", "target"): "it is the option --target of docker build; remove it",
    ("source", "build_args"): "they are options --build-arg of docker build; remove them",
}
"""By table and key."""


def answers(table: str, data: Mapping[str, Any], mappings: object) -> dict[str, str]:
    """Return what to say about the keys of a table, by key. ``mappings`` is the table of that name,
    as it was written.
    """
    found = {key: _KEYS[table, key] for key in data if (table, key) in _KEYS}
    path = data.get("path")
    if table == "init" and isinstance(path, str) and isinstance(mappings, dict):
        source = next((each for each, where in mappings.items() if where == path), None)
        if source is not None:
            found["path"] = (
                "it is a path in the artifact, and must be one of the project; write path ="
                f' "{source}". The file becomes /init and starts with nothing mounted'
            )
    return found
