"""Derives a JSON Schema of fledge.toml from `schema`, for editors that complete and check it.

The JSON Schema accepts what the parser accepts, with two exceptions: it does not look at files, and
it accepts 1.0 as an integer.
"""

from __future__ import annotations

import json
from typing import Any

from fledge.project import manifest, rules
from fledge.project.schema import Group, Key, Schema, Table, Variant, schema
from fledge.project.values import ANY_TEXT, literal
from fledge.project.variables import VARIABLE
from fledge.sources.source import Presence

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Json = dict[str, Any]


def json_schema() -> Json:
    """Return the JSON Schema (draft 2020-12) of fledge.toml, for all registered kinds."""
    declared = schema()
    properties = {key.name: _property_schema([key], [key.description], []) for key in declared.keys}
    properties |= {table.name: _table_schema(table, declared) for table in declared.tables}
    conditions = {
        strategy: _strategy_conditions(strategy, declared) for strategy in declared.strategies
    }
    for table in declared.tables:
        first, *others = (tables.get(table.name) for tables in conditions.values())
        if first and all(other == first for other in others):
            properties[table.name]["allOf"] = [first]
            for tables in conditions.values():
                del tables[table.name]
    properties[manifest.TABLE], definitions = manifest.settings_schema()
    return {
        "$schema": DIALECT,
        "title": "fledge.toml",
        "description": "Describes a bootable plugin artifact, which fledge builds.",
        "type": "object",
        "properties": properties,
        "required": [key.name for key in declared.keys if key.required],
        "additionalProperties": False,
        "allOf": [
            *(
                {
                    "if": {"properties": {"strategy": {"const": name}}, "required": ["strategy"]},
                    "then": _without_empty(
                        properties=tables, required=_required_tables(name, declared)
                    ),
                }
                for name, tables in conditions.items()
            ),
            *rules.json_schema(),
        ],
        "$defs": definitions,
    }


def json_schema_text() -> str:
    """Return the JSON Schema as the text of a file."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _table_schema(table: Table, declared: Schema) -> Json:
    """Return the schema of a table, with the keys of all strategies."""
    if table.entries:
        return _property_schema([table.entries], [table.entries.description], [])
    return {
        "type": "object",
        "description": " ".join(group.description for group in table.groups),
        "properties": {
            name: _property_schema(
                keys,
                table.descriptions(name),
                table.only_for(name, declared.strategies),
                table.only_with(name),
            )
            for name, keys in table.by_name().items()
        },
        "additionalProperties": False,
    }


def _property_schema(
    keys: list[Key], descriptions: list[str], only_for: list[str], only_with: str | None = None
) -> Json:
    """Return the schema of a key with all its declarations."""
    first = keys[0]
    types = [_value_schema(key) for key in keys]
    text = [
        *descriptions,
        *(f"{literal(option)}: {meaning}" for option, meaning in first.options.items()),
    ]
    if only_for:
        text.append(f"Only for {', '.join(only_for)}.")
    if only_with:
        text.append(f"Only with {only_with}.")
    found: Json = dict(types[0]) if len(types) == 1 else {"anyOf": types}
    found["description"] = "\n".join(text)
    if first.default is not None and len({str(key.default) for key in keys}) == 1:
        found["default"] = first.default
    if first.value.examples:
        found["examples"] = list(first.value.examples)
    return found


def _value_schema(key: Key) -> Json:
    """Return the schema of the values of a key, which may have variables in them."""
    found = key.value.json_schema()
    if not key.variables or found["pattern"] == ANY_TEXT:
        return found
    return {"anyOf": [found, {"type": "string", "pattern": VARIABLE.pattern}]}


def _strategy_conditions(strategy: str, declared: Schema) -> Json:
    """Return what a strategy demands of each table. False: the table must be absent."""
    tables: Json = {}
    for table in declared.tables:
        groups = [each for each in table.groups if strategy in each.presence]
        if not groups:
            tables[table.name] = False
        elif not table.entries:
            names = {name for group in groups for name in group.names()}
            foreign = [name for name in table.by_name() if name not in names]
            parts = [_without_empty(properties=dict.fromkeys(foreign, False))]
            parts += [
                part for group in groups for part in _group_conditions(group, strategy, table)
            ]
            parts = [part for part in parts if part]
            if parts:
                tables[table.name] = parts[0] if len(parts) == 1 else {"allOf": parts}
    return tables


def _group_conditions(group: Group, strategy: str, table: Table) -> list[Json]:
    """Return the conditions between the keys of a group."""
    parts: list[Json] = []
    choices = [{"required": [key.name]} for key in group.alternatives]
    if choices:
        parts.append({"anyOf": choices})
    for variant in group.variants:
        then = _variant_conditions(variant, group, table)
        if choices:
            then = {"if": {"required": [variant.decisive.name]}, "then": then}
        if group.selector and then:
            default = variant.choice == group.selector.default
            condition = _without_empty(
                properties={group.selector.name: {"const": variant.choice}},
                required=[] if default else [group.selector.name],
            )
            then = {"if": condition, "then": then}
        parts.append(then)
        parts += (
            # A key that is false counts as absent.
            {
                "if": _has_value(key.name, False),
                "else": {
                    "properties": {
                        each.name: False if each.default is None else {"const": each.default}
                        for each in variant.keys
                        if each.name in key.contradicts
                    }
                },
            }
            for key in variant.keys
            if key.contradicts
        )
    if group.presence[strategy] is Presence.IF_GIVEN:
        if len(group.names()) == 1:
            return []  # a group of one key has no conditions
        given = {"anyOf": [{"required": [name]} for name in group.names()]}
        parts = [{"if": given, "then": part} for part in parts if part]
    return parts


def _variant_conditions(variant: Variant, group: Group, table: Table) -> Json:
    """Return the keys that a variant forbids and requires."""
    declared = table.by_name()
    mine = {key.name: key for key in variant.keys}
    selector = [group.selector.name] if group.selector else []
    refused = (name for name in group.names() if name not in (*mine, *selector))
    ambiguous = {
        name: key.value.json_schema() for name, key in mine.items() if len(declared[name]) > 1
    }
    needs = {name: [other for other, _ in variant.needs(frozenset({name}))] for name in mine}
    return _without_empty(
        allOf=[
            # A key with its default value says nothing new.
            {
                "if": _has_value(name, mine[name].default),
                "else": {"dependentRequired": {name: others}},
            }
            for name, others in needs.items()
            if others and mine[name].default is not None
        ]
        + [rules for rules in [variant.json_rules()] if rules],
        properties=dict.fromkeys(refused, False) | ambiguous,
        required=[key.name for key in variant.keys if key.required],
        dependentRequired={
            name: others for name, others in needs.items() if others and mine[name].default is None
        },
    )


def _has_value(name: str, value: object) -> Json:
    """Return the schema of a table whose key, if it is there, has that value."""
    return {"properties": {name: {"const": value}}}


def _required_tables(strategy: str, declared: Schema) -> list[str]:
    """Return the names of the required tables."""
    return [
        table.name
        for table in declared.tables
        if any(
            group.presence.get(strategy) in (Presence.ALWAYS, Presence.REQUIRED)
            and any(key.required for key in group.variants[0].keys)
            for group in table.groups
        )
    ]


def _without_empty(**parts: Any) -> Json:
    """Return an object of the parts that are not empty."""
    return {name: part for name, part in parts.items() if part}
