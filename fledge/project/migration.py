"""Changes a fledge.toml of the original fledge, in Go, into one that this fledge accepts.

The original passes over keys that it does not know or need, takes empty text for a missing key, and
names its init by the path in the artifact (internal/config of github.com/volantvm/fledge).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import tomli

from fledge.errors import ConfigError
from fledge.project import foreign, manifest
from fledge.project.positions import Keys, named_keys, positions
from fledge.project.schema import Group, Table, schema
from fledge.project.toml import Problem
from fledge.project.values import close_match, literal, quoted_key

MOUNTS = (
    "the original mounts /proc, /sys, /dev, /tmp and /run before it starts, and fledge does not:"
    " let it begin with mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev"
    " /dev"
)
"""What an init of the project has to do itself."""


MAX_SHOWN = 80
"""Maximum characters of a value in a message."""

_TEXT = re.compile(r"""\s*(?:"(?:[^"\\]|\\.)*"|'[^']*')""")
_NOTHING = re.compile(r"\s*(?:#.*)?")
"""A line with neither a key nor a value."""


class Edit(msgspec.Struct, frozen=True):
    """One change of a TOML file."""

    keys: Keys
    """The path to the key or table."""
    value: str | None
    """The new value; None: the key or table becomes a comment."""
    why: str

    def describe(self, data: Mapping[str, Any]) -> str:
        """Say what changes in a file with that content."""
        *tables, name = self.keys
        old: Any = data
        for key in self.keys:
            old = old[key]
        shown = f"[{quoted_key(name)}]"
        if tables or not isinstance(old, dict):
            header = "".join(f"[{each}] " for each in tables)
            shown = f"{header}{quoted_key(name)} = {literal(old)[:MAX_SHOWN]}"
        new = "a comment" if self.value is None else literal(self.value)
        return f"{shown} becomes {new}: {self.why}"


def migrate(text: str, path: Path) -> tuple[str, tuple[Problem, ...]]:
    """Return the text of a fledge.toml that this fledge reads, and what has changed, in its order.

    ``text`` is valid TOML, ``path`` is for messages. All lines stay in their order; those that have
    no meaning become comments. Problems that the original would report as well stay. Raises
    `ConfigError` if the text cannot be changed by whole lines.
    """
    data = tomli.loads(text)
    edits = list(_edits(data))
    if not edits:
        return text, ()
    places = positions(text)
    found = [(places[edit.keys].line, edit.describe(data)) for edit in edits]
    changes = tuple(Problem(message, line) for line, message in sorted(found))
    expected = copy.deepcopy(data)
    for edit in edits:
        _apply(edit, expected)
    new = _edited(text, edits)
    try:
        is_right = tomli.loads(new) == expected
    except tomli.TOMLDecodeError:
        is_right = False
    if not is_right:
        raise ConfigError(
            f"{path} is not written a line for each key, so that fledge cannot change it",
            "Make these changes by hand.",
            [change.shown(path) for change in changes],
        )
    return new, changes


def _edited(text: str, edits: list[Edit]) -> str:
    """Return the text with lines changed or made comments.

    Whether that is right has to be checked: two keys may share a line.
    """
    lines = text.split("\n")
    named = list(named_keys(text))
    ends = [*(position.line for _, position in named[1:]), len(lines) + 1]
    off: set[int] = set()
    for (keys, position), end in zip(named, ends, strict=True):
        edit = next((each for each in edits if keys[: len(each.keys)] == each.keys), None)
        first = position.line - 1
        if edit and edit.value is not None:
            before, equals, after = lines[first].partition("=")
            after = _TEXT.sub("", after, count=1)
            lines[first] = f"{before}{equals} {literal(edit.value)}{after}"
        elif edit:
            last = max(end - 2, first)
            while last > first and _NOTHING.fullmatch(lines[last]):
                last -= 1
            off.update(range(first, last + 1))
    return "\n".join(f"# {line}" if number in off else line for number, line in enumerate(lines))


def _apply(edit: Edit, data: Any) -> None:
    *tables, name = edit.keys
    for key in tables:
        data = data[key]
    if edit.value is None:
        del data[name]
    else:
        data[name] = edit.value


def _edits(data: Mapping[str, Any]) -> Iterator[Edit]:
    """Yield what the original allows and this fledge does not."""
    declared = schema()
    strategy = data.get("strategy")
    tables = {table.name: table for table in declared.tables}
    known = [*(key.name for key in declared.keys), *tables, manifest.TABLE]
    for name, value in data.items():
        table = tables.get(name)
        if table is None:
            yield from _unknown((name,), known)
        elif isinstance(value, dict) and strategy in declared.strategies:
            groups = [group for group in table.groups if strategy in group.presence]
            if not groups:
                yield Edit((name,), None, f"it has no meaning for strategy = {literal(strategy)}")
            elif not table.entries:
                yield from _table_edits(table, groups, value, data.get("mappings"))


def _table_edits(
    table: Table, groups: list[Group], value: dict[str, Any], mappings: object
) -> Iterator[Edit]:
    if source := foreign.init_source(table.name, value, mappings):
        yield Edit((table.name, "path"), source, f"it is a file of the project; {MOUNTS}")
    given = {key: each for key, each in value.items() if each != ""}
    known = [name for group in table.groups for name in group.names()]
    for key in value:
        owners = [group for group in groups if key in group.names()]
        keys = (table.name, key)
        if key not in given:
            yield Edit(keys, None, "empty text is no value")
        elif key not in known:
            yield from _unknown(keys, known)
        elif not owners:
            yield Edit(keys, None, "it has no meaning for this strategy")
        elif not any(_is_chosen(group, key, given) for group in owners):
            yield Edit(keys, None, "what chooses it is not set, so that it has no meaning")


def _is_chosen(group: Group, key: str, given: Mapping[str, Any]) -> bool:
    """Return whether the keys that are given choose a variant that has a key."""
    is_selector = group.selector is not None and group.selector.name == key
    chosen = group.chosen(given)
    return is_selector or chosen is None or chosen.key(key) is not None


def _unknown(keys: Keys, known: list[str]) -> Iterator[Edit]:
    """Remove an unknown key. The original reads keys in capitals: those stay, and are reported."""
    name = keys[-1]
    if name in known or name.lower() in known:
        return
    if len(keys) == 1 and name in manifest.PluginManifest.__struct_fields__:
        why = "the original passes over it; it belongs in manifest.toml, or in [manifest]"
    elif close := close_match(name, known):
        why = f"the original passes over it; if {close} was meant, write that"
    else:
        why = "the original passes over it"
    yield Edit(keys, None, why)
