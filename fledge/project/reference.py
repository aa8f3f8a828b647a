"""Derives the reference page of fledge.toml, in Markdown, from `schema`."""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgspec

from fledge.project import manifest
from fledge.project.schema import Key, Table, schema
from fledge.project.values import Choice, Entries, literal
from fledge.sources.source import Presence

INTRODUCTION = """\
# fledge.toml

<!-- scripts/reference writes this page from the declarations in fledge/. Edit those. -->

All keys of `fledge.toml`. Paths are relative to the folder of the file. fledge reports all mistakes
at once, with their line numbers.

Editors that support JSON Schema can complete and check the file. Give yours `fledge.schema.json`,
which `fledge schema` prints, or name it in the first line of `fledge.toml`:

```toml
#:schema ./fledge.schema.json
```
"""


def reference_page() -> str:
    """Return the page, for all registered kinds."""
    declared = schema()
    names = [*(table.name for table in declared.tables), manifest.TABLE]
    links = [f"[`[{name}]`](#{name})" for name in names]
    parts = [INTRODUCTION, f"The tables: {', '.join(links)}.\n"]
    for key in declared.keys:
        facts = [] if key.options else [("Type", key.value.describe())]
        example = f"{key.name} = {_example_value(key)}"
        parts += _key_lines(f"## `{key.name}`", key, [*facts, ("Required", "yes")], example)
    for table in declared.tables:
        parts += _table_lines(table, declared.strategies)
    parts += _manifest_lines()
    return "\n".join(parts)


def _table_lines(table: Table, strategies: tuple[str, ...]) -> Iterator[str]:
    yield f"## `[{table.name}]`\n"
    yield " ".join(group.description for group in table.groups) + "\n"
    taken = [each for each in strategies if any(each in group.presence for group in table.groups)]
    if len(taken) < len(strategies):
        yield f"Only for {_condition('strategy', taken)}.\n"
    if table.entries and isinstance(table.entries.value, Entries):
        yield table.entries.description + "\n"
        yield _code_block(f"[{table.name}]\n{table.entries.value.example_line()}")
        return
    for name, keys in table.by_name().items():
        key = keys[0]
        facts = []
        if len(keys) > 1:
            shared = key.description if len(table.descriptions(name)) == 1 else ""
            facts += [
                (f"With `{table.chosen_by(each)}`", _declaration(each, shared)) for each in keys
            ]
            key = msgspec.structs.replace(key, description=shared, default=None)
        elif not key.options:
            facts.append(("Type", key.value.describe()))
        # The strategies of the whole table are already on the page.
        if only_for := table.only_for(name, tuple(taken)):
            facts.append(("Only for", " and ".join(f"`{each}`" for each in only_for)))
        if only_with := table.only_with(name):
            facts.append(("Only with", f"`{only_with}`"))
        if key.variables:
            facts.append(("Variables", "`${NAME}` is replaced by that variable"))
        if key.required:
            facts.append(("Required", _required(table, name)))
        elif key.default is not None:
            facts.append(("Default", f"`{literal(key.default)}`"))
        yield from _key_lines(f"### `{name}`", key, facts, _example(table, name))


def _declaration(key: Key, shared: str) -> str:
    """Describe one of several declarations of a key in a line, without a description they share."""
    default = "" if key.default is None else f", by default `{literal(key.default)}`"
    own = "" if key.description == shared else f". {key.description}"
    return f"{key.value.describe()}{default}{own}"


def _manifest_lines() -> Iterator[str]:
    """Describe the table of the plugin manifest, whose keys have tables in them."""
    found, definitions = manifest.settings_schema()
    yield f"## `[{manifest.TABLE}]`\n"
    yield found["description"] + "\n"
    lines = []
    for name, key in found["properties"].items():
        inside = [each for each in definitions if f'"#/$defs/{each}"' in json.dumps(key)]
        keys = [f"`{each}`" for part in inside for each in definitions[part]["properties"]]
        lines.append(
            f"- `{name}`: {key['description']}" + (f" Keys: {', '.join(keys)}." if keys else "")
        )
    yield "\n".join(lines) + "\n"
    yield _code_block(
        f'[{manifest.TABLE}]\nname = "web"\nresources = {{cpu_cores = 1, memory_mb = 256}}\n'
        f'workload.base_url = "http://127.0.0.1:8080"'
    )


def _key_lines(title: str, key: Key, facts: list[tuple[str, str]], example: str) -> Iterator[str]:
    yield f"{title}\n"
    if key.description:
        yield f"{key.description}\n"
    lines = [f"- `{literal(each)}`: {meaning}" for each, meaning in key.options.items()]
    lines += [f"- {name}: {text}" for name, text in facts]
    yield "\n".join(lines) + "\n"
    yield _code_block(example)


def _required(table: Table, name: str) -> str:
    """Describe when a key is required."""
    presence = {
        strategy: each
        for group in table.groups
        if group.owners(name)
        for strategy, each in group.presence.items()
    }
    optional = (Presence.IF_GIVEN, Presence.IF_TABLE)
    always = [strategy for strategy, each in presence.items() if each not in optional]
    if not always:
        return f"in `[{table.name}]`, which may be left out"
    instead = {
        other.name: other
        for group in table.groups
        for other in (group.alternatives if group.owners(name) else ())
        if other.name != name
    }
    unless = "".join(f", unless there is `{other}`" for other in instead)
    needed = "yes" if len(always) == len(presence) else f"with {_condition('strategy', always)}"
    return needed + unless


def _condition(key: str, values: list[str]) -> str:
    return f"`{key} = {' or '.join(map(literal, values))}`"


def _example(table: Table, name: str) -> str:
    """Return an example of the table, with the key and those that it requires."""
    lines = [f"[{table.name}]"]
    for group in table.groups:
        owners = group.owners(name)
        if owners and group.selector and owners[0] is not group.variants[0]:
            lines.append(f"{group.selector.name} = {literal(owners[0].choice)}")
        partners = [other for each in owners[:1] for other, _ in each.needs(frozenset({name}))]
        names = [name] if owners or (group.selector and group.selector.name == name) else []
        required = [key.name for each in owners[:1] for key in each.keys if key.required]
        for each in dict.fromkeys((*names, *partners, *required)):
            lines.append(f"{each} = {_example_value(table.by_name()[each][0])}")
    return "\n".join(lines)


def _example_value(key: Key) -> str:
    if key.value.examples:
        return literal(key.value.examples[0])
    return literal(key.value.options[0]) if isinstance(key.value, Choice) else key.value.like()


def _code_block(toml: str) -> str:
    return f"```toml\n{toml}\n```\n"
