"""Writes a first fledge.toml, with comments from the declarations of the keys.

A line that begins with ``# `` is a comment. One that begins with ``#`` and no space is a setting
that is switched off: without the ``#`` it is valid.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

import msgspec

from fledge.project import manifest
from fledge.project.schema import Group, Key, Schema, schema
from fledge.project.values import Choice, Entries, literal, quoted_key

WIDTH = 80
"""Maximum characters of a comment line."""

SCHEMA_FILE = "fledge.schema.json"

INTRODUCTION = """\
#:schema ./{schema}
# A line that begins with # and no space is a setting that is switched off.
# An editor that supports JSON Schema shows all keys, and so does {schema}.
"""

SUGGESTED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("source", ()),
    ("agent", ("version",)),
    ("mappings", ()),
    ("archive", ("compression",)),
    ("filesystem", ("type", "size_buffer_mb")),
    ("target", ("kernel",)),
)
"""The tables in the order of the file, and the keys that are shown even if they are not set."""


class Settings(msgspec.Struct, frozen=True):
    """What a first fledge.toml sets."""

    strategy: str
    tables: Mapping[str, Mapping[str, object]]
    """By table and key, as in TOML."""
    manifest: Mapping[str, object] | None
    """The keys of ``[manifest]``; one of a table inside has a dot. None: there is a manifest.toml
    with them."""
    has_manifest: bool
    """Whether ``manifest`` is complete, so that a build can write a plugin manifest. If not, the
    table is switched off."""
    guesses: Mapping[str, str] = {}
    """By key of ``manifest``, a comment on a value that may be wrong."""


def render(settings: Settings) -> str:
    """Return the text of the file."""
    declared = schema()
    lines = [INTRODUCTION.format(schema=SCHEMA_FILE)]
    for key in declared.keys:
        lines += _key_lines(key, settings.strategy if key.options else _example(key), "")
    for name, shown in SUGGESTED:
        lines += _table_lines(declared, settings, name, shown)
    if settings.manifest is not None:
        lines += _manifest_lines(settings, settings.manifest)
    return "\n".join(lines) + "\n"


def _table_lines(
    declared: Schema, settings: Settings, name: str, shown: tuple[str, ...]
) -> Iterator[str]:
    """Yield a table, with the keys that are set or shown; nothing if the strategy has no such."""
    found = next(table for table in declared.tables if table.name == name)
    groups = [group for group in found.groups if settings.strategy in group.presence]
    values = settings.tables.get(name, {})
    if not groups or not (values or shown or found.entries):
        return
    yield ""
    yield from _comment(" ".join(group.description for group in groups))
    off = "" if values else "#"
    yield f"{off}[{name}]"
    if found.entries and isinstance(found.entries.value, Entries):
        yield from _comment(found.entries.description)
        examples = found.entries.value.example_line().splitlines()
        set_lines = [f"{quoted_key(key)} = {literal(value)}" for key, value in values.items()]
        yield from set_lines or [f"#{line}" for line in examples]
        return
    for key in dict.fromkeys((*values, *shown)):
        declaration = _declaration(groups, key)
        if key in values:
            yield from _key_lines(declaration, values[key], "")
        else:
            yield from _key_lines(declaration, _example(declaration), "#")


def _declaration(groups: list[Group], name: str) -> Key:
    """Return the declaration of a key: that of the default variant, if several have it."""
    for group in groups:
        if group.selector and group.selector.name == name:
            return group.selector
        for variant in group.variants:
            if key := variant.key(name):
                return key
    raise KeyError(name)


def _example(key: Key) -> object:
    """Return the default of a key; an example if it has none."""
    if key.default is not None:
        return key.default
    examples = key.value.options if isinstance(key.value, Choice) else key.value.examples
    return examples[0]


def _key_lines(key: Key, value: object, off: str) -> Iterator[str]:
    yield from _comment(key.description)
    for option, meaning in key.options.items():
        yield from _comment(f"{literal(option)}: {meaning}", indent="  ")
    yield f"{off}{key.name} = {literal(value)}"


def _manifest_lines(settings: Settings, values: Mapping[str, object]) -> Iterator[str]:
    found, _ = manifest.settings_schema()
    off = "" if settings.has_manifest else "#"
    yield ""
    yield from _comment(found["description"])
    yield f"{off}[{manifest.TABLE}]"
    explained = ""
    for name, value in values.items():
        first = name.partition(".")[0]
        if first != explained:
            explained = first
            yield from _comment(found["properties"][first]["description"])
        yield from _comment(settings.guesses.get(name, ""))
        yield f"{off}{name} = {literal(value)}"


def _comment(text: str, indent: str = "") -> Iterator[str]:
    """Yield lines of a comment; none if there is no text."""
    for line in textwrap.wrap(text, WIDTH - 2 - len(indent), break_on_hyphens=False):
        yield f"# {indent}{line}"
