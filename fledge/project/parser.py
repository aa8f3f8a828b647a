"""Parses a fledge.toml into a format and sources, as the schema describes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import msgspec

from fledge.formats import Format
from fledge.project import foreign, manifest
from fledge.project.schema import TOP, Group, Key, Schema, Variant
from fledge.project.toml import Document, Table
from fledge.project.values import Entries, literal
from fledge.sources.source import Presence, Source


class Parsed(msgspec.Struct, frozen=True):
    """The result of parsing. Parts with problems are missing."""

    strategy: str | None
    """None if it is missing or unknown."""
    format: Format | None
    """None if it has a problem."""
    sources: tuple[Source, ...]
    """In the order of the schema."""
    settings: Mapping[str, msgspec.Struct]
    """The tables of `SETTINGS` and `SEALING` that are given, by name."""
    tables: Mapping[str, Table]
    """All tables of the schema, by name. A table that the document lacks is empty."""


def parse(document: Document, schema: Schema) -> Parsed:
    """Parse a document. Reports all problems to the document, and raises nothing."""
    top, places = document.top, schema.places()
    below = _below_a_header(top, schema)
    found = {
        key.name: below[key.name][1] if key.name in below else top.required(key.name, key.value)
        for key in schema.keys
    }
    tables_of = (*(table.name for table in schema.tables), manifest.TABLE)
    top.reject_unknown((*found, *tables_of), places)
    strategy = cast("str | None", found["strategy"])
    # By id of the group: kinds that share a table may be apart in the list of sources.
    built: dict[int, Any] = {}
    tables = {}
    for declared in schema.tables:
        tables[declared.name] = table = top.table(declared.name)
        moved = [name for name, (where, _) in below.items() if where == declared.name]
        answered = foreign.answers(declared.name, table.data, top.data.get("mappings"))
        for name, answer in answered.items():
            table.report_value(name, answer)
        table = table.without((*moved, *answered))
        reading = _TableReader(table, declared.groups, strategy, schema.strategies, places)
        for group, value in reading.read():
            built[id(group)] = value
    formats = schema.formats.get(strategy or "")
    format_ = built.get(id(formats))
    if format_ is None and formats is not None and not document.has_problems:
        format_ = formats.variants[0].type()  # a format without options has no table
    sources = (built.get(id(group)) for group in schema.sources)
    settings = {each.table: built[id(each)] for each in schema.settings if id(each) in built}
    return Parsed(
        strategy, format_, tuple(each for each in sources if each is not None), settings, tables
    )


class _TableReader:
    """Reads one table: checks its keys and builds the structs of its groups."""

    def __init__(
        self,
        table: Table,
        groups: tuple[Group, ...],
        strategy: str | None,
        strategies: tuple[str, ...],
        places: Mapping[str, str],
    ) -> None:
        self.table = table
        self.groups = groups
        self.strategy = strategy
        self.places = places
        self.presence = {
            id(group): _group_presence(group, strategy, strategies) for group in groups
        }
        self.chosen = {id(group): group.chosen(table.data) for group in groups}

    def is_accepted(self, group: Group) -> bool:
        """Return whether the strategy accepts the group.

        An unknown strategy accepts only the groups that all strategies accept.
        """
        return self.presence[id(group)] is not None

    def read(self) -> list[tuple[Group, object]]:
        """Read the table. Returns each group in it with its struct."""
        table = self.table
        given = table.keys[0] in table.document.top.data
        if given and self.strategy and not any(map(self.is_accepted, self.groups)):
            table.report(f"{_only_for(self.groups)}; remove the table")
        group = self.groups[0]
        if (entries := group.variants[0].entries) is not None:
            built = _read_entries(table, group.variants[0], entries)
            left_out = self.presence[id(group)] is Presence.IF_GIVEN and not table.data
            return [(group, built)] if self.is_accepted(group) and not left_out else []
        keys = self._keys()
        table.reject_unknown(keys, self.places)
        values = {
            name: value
            for name, key in keys.items()
            if name in table.data and (value := table.value(name, key.value)) is not None
        }
        self._report_misplaced(keys)
        read = ((group, self._build(group, values)) for group in self.groups)
        return [(group, value) for group, value in read if value is not None]

    def _keys(self) -> dict[str, Key]:
        """Return the keys that the table may have, by name.

        If several groups or variants declare a key, the accepted and chosen one wins.
        """
        keys: dict[str, Key] = {}
        for group in sorted(self.groups, key=self.is_accepted):
            chosen = self.chosen[id(group)]
            for variant in (*group.variants, *([chosen] if chosen else [])):
                keys.update({key.name: key for key in variant.keys})
            if group.selector:
                keys[group.selector.name] = group.selector
        return keys

    def _report_misplaced(self, keys: Mapping[str, Key]) -> None:
        """Report keys that only another strategy or another variant accepts."""
        table, groups = self.table, [each for each in self.groups if self.is_accepted(each)]
        for name in (name for name in keys if groups and name in table.data):
            owners = [group for group in groups if name in group.names()]
            if not owners and self.strategy:
                others = [group for group in self.groups if name in group.names()]
                table.report_value(name, f"{_only_for(others)}; remove it")
            elif owners and not any(self._belongs(group, name) for group in owners):
                if owners[0].alternatives:
                    needed = owners[0].owners(name)[0].decisive.name
                    table.report_value(name, f"requires {needed}; add that, or remove {name}")
                    continue
                selector = cast(Key, owners[0].selector).name
                choices = (literal(each.choice) for each in owners[0].owners(name))
                needed = f"{selector} = {' or '.join(choices)}"
                table.report_value(name, f"requires {needed}; add that, or remove {name}")

    def _belongs(self, group: Group, name: str) -> bool:
        """Return whether the chosen variant has the key. True if the choice is unknown."""
        chosen = self.chosen[id(group)]
        is_selector = group.selector is not None and group.selector.name == name
        return is_selector or chosen is None or chosen.key(name) is not None

    def _build(self, group: Group, values: Mapping[str, object]) -> object | None:
        """Build the struct of a group; None if it is left out or has a problem."""
        table, chosen = self.table, self.chosen[id(group)]
        given = frozenset(name for name in group.names() if name in table.data)
        presence = self.presence[id(group)]
        if presence is None or (presence is Presence.IF_GIVEN and not given):
            return None
        if chosen is None:
            self._report_choice(group, given)
            return None
        if presence is Presence.IF_TABLE and table.keys[0] not in table.document.top.data:
            return None
        complete = given <= values.keys()
        # A key with its default value says nothing new.
        changed = given & {
            key.name for key in chosen.keys if table.data.get(key.name) != key.default
        }
        for key in chosen.keys:
            if key.required and key.name not in given:
                table.report_missing(key.name, f"write {key.name} = {key.value.like()}")
                complete = False
            for other in key.contradicts if values.get(key.name) else ():
                if other in changed:
                    table.report_value(key.name, f"contradicts {other}; keep one of the two")
                    complete = False
        for name, why in chosen.needs(changed):
            if name not in given:
                table.report_missing(name, why)
                complete = False
        if not complete:
            return None
        fields = {key.field: values[key.name] for key in chosen.keys if key.name in given}
        try:
            return cast(object, chosen.type(**fields))
        except ValueError as error:
            self._report_refusal(str(error), given)
            return None

    def _report_refusal(self, text: str, given: frozenset[str]) -> None:
        """Report what a constructor refuses: ``KEY = VALUE: PROBLEM``, or several keys together."""
        name, _, rest = text.partition(" = ")
        if name in given:
            self.table.report_value(name, rest.partition(": ")[2])
        else:
            self.table.report(text)

    def _report_choice(self, group: Group, given: frozenset[str]) -> None:
        """Report that of the keys that choose a variant none is given, or several are."""
        named = [key.name for key in group.alternatives if key.name in given]
        for name in named[1:]:
            self.table.report_value(name, f"contradicts {named[0]}; keep one of the two")
        if group.alternatives and not named:
            owners = {
                id(each.decisive): each.decisive for name in given for each in group.owners(name)
            }
            keys = list(owners.values()) or group.alternatives
            ways = " or ".join(f"{key.name} = {key.value.like()}" for key in keys)
            self.table.report_missing(keys[0].name, f"write {ways}")


def _below_a_header(top: Table, schema: Schema) -> dict[str, tuple[str, object]]:
    """Report the keys of the top-level table that are below the header of another table.

    Returns the name of that table and the value by key, for keys that the top-level table lacks.
    """
    found: dict[str, tuple[str, object]] = {}
    names = [table.name for table in schema.tables if isinstance(top.data.get(table.name), dict)]
    for key in schema.keys:
        for table in map(top.table, () if key.name in top.data else names):
            if key.value.accepts(table.data.get(key.name)):
                table.report_value(key.name, f"it belongs {TOP}")
                found[key.name] = table.name, table.data[key.name]
                break
    return found


def _group_presence(
    group: Group, strategy: str | None, strategies: tuple[str, ...]
) -> Presence | None:
    """Return when the group is present; None: never. The strategy is None if it is unknown."""
    if strategy is not None:
        return group.presence.get(strategy)
    return Presence.IF_GIVEN if group.presence.keys() >= set(strategies) else None


def _read_entries(table: Table, variant: Variant, value: Entries) -> object:
    """Build the struct of a table with free keys from its valid entries."""
    texts = {name: table.value(name, value) for name in table.data}
    valid = {name: text for name, text in texts.items() if text is not None}
    built, problems = variant.type.read(valid, table.folder)
    for name, problem in problems:
        table.report_value(name, problem)
    return cast(object, built)


def _only_for(groups: Iterable[Group]) -> str:
    """List the strategies that accept one of the groups."""
    strategies = dict.fromkeys(each for group in groups for each in group.presence)
    return f"only for strategy = {' or '.join(map(literal, strategies))}"
