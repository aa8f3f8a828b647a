"""Answers to what the original fledge has and this one has not, or has in another way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DOCKERFILE_OPTIONS: Mapping[str, str] = {
    "--dockerfile": 'write dockerfile = "FILE" in [source]; or run fledge build ./Dockerfile',
    "--context": 'write context = "FOLDER" in [source]',
    "--target": 'write target = "STAGE" in [source]',
    "--build-arg": 'write build_args = { NAME = "VALUE" } in [source]',
    "--output-initramfs": 'write strategy = "initramfs" and dockerfile = "FILE" in [source]',
}
"""What to do instead of options of the command ``build``."""

_VALUES: Mapping[tuple[str, str, object], str] = {
    ("source", "target", ""): "remove it; without target, the last stage is built",
}
"""By table, key and value."""


def answers(table: str, data: Mapping[str, Any], mappings: object) -> dict[str, str]:
    """Return what to say about the keys of a table, by key. ``mappings`` is the table of that name,
    as it was written.
    """
    found = {
        key: _VALUES[table, key, value]
        for key, value in data.items()
        if isinstance(value, str) and (table, key, value) in _VALUES
    }
    path = data.get("path")
    if table == "init" and isinstance(path, str) and isinstance(mappings, dict):
        source = next((each for each, where in mappings.items() if where == path), None)
        if source is not None:
            found["path"] = (
                "it is a path in the artifact, and must be one of the project; write path ="
                f' "{source}". The file becomes /init and starts with nothing mounted'
            )
    return found
