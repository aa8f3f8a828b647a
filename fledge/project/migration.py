"""Changes a fledge.toml of the original fledge, in Go, into one that this fledge accepts.

The original passes over keys that it does not know or need, takes empty text for a missing key, and
names its init by the path in the artifact (internal/config of github.com/volantvm/fledge).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import tomli

from fledge.errors import ConfigError
from fledge.project import foreign, manifest
from fledge.project.positions import Keys, positions
from fledge.project.schema import Group, Table, schema
from fledge.project.toml import Problem
from fledge.project.values import close_match, literal, quoted_key

MOUNTS = (
    "the original mounts /proc, /sys, /dev, /tmp and /run before it starts, and fledge does not:"
    " let it begin with mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev"
    " /dev"
)
"""What an init of the project has to do itself."""


class Edit(msgspec.Struct, frozen=True):
    """One change of a TOML file."""

    keys: Keys
    """The path to the key or table."""
    value: str | None
    """The new value; None: the key or table is removed."""
    why: str

    def describe(self, data: Mapping[str, Any]) -> str:
        """Say what changes in a file with that content."""
        *tables, name = self.keys
        old: Any = data
        for key in self.keys:
            old = old[key]
        header = f"[{'.'.join(map(quoted_key, tables))}] " if tables else ""
        if isinstance(old, dict) and not tables:
            return f"[{quoted_key(name)}] is removed: {self.why}"
        setting = f"{header}{quoted_key(name)} = {literal(old)}"
        if self.value is None:
            return f"{setting} is removed: {self.why}"
        return f"{setting} becomes {literal(self.value)}: {self.why}"


def migrate(text: str, path: Path) -> tuple[str, tuple[Problem, ...]]:
    """Return the text of a fledge.toml that this fledge reads, and what has changed, in its order.

    ``text`` is valid TOML, ``path`` is for messages. Comments and order stay; only the comment on a
    line that is removed goes with it. Problems that are no matter of the original stay as they are.
    Raises `ConfigError` if the text cannot be changed without changing anything else.
    """
    data = tomli.loads(text)
    edits = list(_edits(data))
    if not edits:
        return text, ()
    places = positions(text)
    changes = [
        Problem(edit.describe(data), place.line if (place := places.get(edit.keys)) else None)
        for edit in edits
    ]
    changes.sort(key=lambda change: change.line or 0)
    expected = copy.deepcopy(data)
    for edit in edits:
        _apply(edit, expected)
    new = _edited(text, edits)
    if new is None or tomli.loads(new) != expected:
        raise ConfigError(
            f"{path} is written in a way that fledge cannot change",
            "Make these changes by hand.",
            [change.shown(path) for change in changes],
        )
    return new, tuple(changes)


def _edited(text: str, edits: list[Edit]) -> str | None:
    """Return the text with the edits; None if that fails."""
    # Imported here because nothing else needs it, and it is slow to import.
    import tomlkit  # noqa: PLC0415
    from tomlkit.exceptions import TOMLKitError  # noqa: PLC0415

    try:
        document = tomlkit.parse(text)
        for edit in edits:
            _apply(edit, document)
        return tomlkit.dumps(document)
    except (TOMLKitError, KeyError, TypeError, ValueError, RecursionError):
        return None


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
    close = close_match(name, known)
    meant = f"; if {close} was meant, write that" if close else ""
    yield Edit(keys, None, f"neither fledge knows it, and the original passes over it{meant}")
