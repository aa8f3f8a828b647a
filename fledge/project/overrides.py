"""Applies what a command line sets (``--set agent.version=v1.2``) to a parsed fledge.toml."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tomli

from fledge.errors import ConfigError
from fledge.project import manifest
from fledge.project.schema import Key, Schema
from fledge.project.toml import Document

_PLAIN_TYPES = ("boolean", "integer", "array", "object")
"""The types of JSON Schema whose values are TOML on a command line; others are text."""


def apply(document: Document, changes: Sequence[str], schema: Schema) -> None:
    """Set keys of a document, each as ``KEY=VALUE``.

    The value of a text key is text, with or without quotes; any other is TOML. What is wrong with
    a key or value is found later, as for one in the file. Raises `ConfigError` if a change has no
    such form.
    """
    for change in changes:
        keys, text = _split(change)
        table = document.top.data
        for depth, name in enumerate(keys[:-1], start=1):
            if name not in table:
                table[name] = {}
                document.origins[keys[:depth]] = f"--set {'.'.join(keys)}"
            inner = table[name]
            if not isinstance(inner, dict):
                raise ConfigError(
                    f"--set {change}: {'.'.join(keys[:depth])} is a value, not a table",
                    "Name a key as in fledge.toml, such as agent.version.",
                )
            table = inner
        table[keys[-1]] = _value(document, keys, text, schema)
        document.origins[keys] = f"--set {'.'.join(keys)}"


def _split(change: str) -> tuple[tuple[str, ...], str]:
    """Split a change into the path of its key and the text of its value."""
    equals = -1
    while (equals := change.find("=", equals + 1)) > 0:
        try:
            table: Any = tomli.loads(f"{change[:equals]} = 0")
        except tomli.TOMLDecodeError:
            continue  # a = in a quoted key
        keys = []
        while isinstance(table, dict) and len(table) == 1:
            [(name, table)] = table.items()
            keys.append(name)
        if table == 0:
            return tuple(keys), change[equals + 1 :]
    raise ConfigError(
        f"--set {change}: is not KEY=VALUE",
        "Write a key as in fledge.toml and its value, such as agent.version=v1.2.",
    )


def _value(document: Document, keys: tuple[str, ...], text: str, schema: Schema) -> object:
    try:
        parsed: object = tomli.loads(f"value = {text}")["value"]
    except (tomli.TOMLDecodeError, RecursionError, ValueError):
        return text
    if isinstance(parsed, str):
        return parsed
    if keys[0] == manifest.TABLE:
        return parsed if _manifest_refuses(document, keys, text) else text
    key = _find(keys, schema)
    is_text = key is None or key.value.json_schema().get("type") not in _PLAIN_TYPES
    return text if is_text else parsed


def _find(keys: tuple[str, ...], schema: Schema) -> Key | None:
    """Return the declared key; None: there is none, or its values are texts."""
    if len(keys) == 1:
        return next((key for key in schema.keys if key.name == keys[0]), None)
    tables = [table for table in schema.tables if table.name == keys[0] and not table.entries]
    if not tables or len(keys) > 2:
        return None
    found = tables[0].by_name().get(keys[1])
    return found[0] if found else None


def _manifest_refuses(document: Document, keys: tuple[str, ...], text: str) -> bool:
    """Return whether the plugin manifest does not accept a value as text."""
    top: Any = document.top.data[manifest.TABLE]
    table = top
    for name in keys[1:-1]:
        table = table[name]
    table[keys[-1]] = text
    try:
        manifest.settings(top)
    except manifest.WrongKeys as error:
        return any(tuple(each.keys) == keys[1:] for each in error.found)
    return False
