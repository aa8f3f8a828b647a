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
    source = init_source(table, data, mappings)
    if source is not None:
        found["path"] = (
            "it is a path in the artifact, and must be one of the project; write path ="
            f' "{source}". The file becomes /init and starts with nothing mounted'
        )
    return found


def init_source(table: str, data: Mapping[str, Any], mappings: object) -> str | None:
    """Return the file of the project that is meant by ``path`` in ``[init]``, if that is where a
    mapping puts it, as the original has it. None: it is something else.
    """
    path = data.get("path")
    if table != "init" or not isinstance(path, str) or not isinstance(mappings, dict):
        return None
    return next((each for each, where in mappings.items() if where == path), None)
