"""The schema of fledge.toml, derived from the sources and the formats.

The classes in `SOURCES` and `FORMATS` declare every key once: a field of a struct is a key, and its
annotation and default describe it. The parser, the reference page and the JSON Schema are derived
from `schema`, which reads the two lists whenever it is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from fledge.formats import FORMATS, STRATEGIES
from fledge.project import toml
from fledge.project.build_cache import BuildCache
from fledge.project.declarations import declared
from fledge.project.sboms.table import Sbom
from fledge.project.sealing import Verity
from fledge.project.target import Target
from fledge.project.values import Choice, Entries, Value, literal
from fledge.sources.kinds import SOURCES
from fledge.sources.source import Presence
from fledge.tree.digest import Digest

TOP = "at the top of the file, above every [table]"
"""Where the keys of the top-level table belong."""
SETTINGS: dict[str, type[msgspec.Struct]] = {"target": Target, "cache": BuildCache}
"""The tables that change no artifact, for every strategy: the class of each, whose keys all have
defaults."""
SEALING: dict[str, type[msgspec.Struct]] = {"verity": Verity}
"""The tables that seal a disk by being there, in the same way."""

DOCUMENTS: dict[str, type[msgspec.Struct]] = {"sbom": Sbom}
"""The tables that put documents beside the artifact by being there, for every strategy."""

Record = TypeVar("Record", bound=msgspec.Struct)


class Key(msgspec.Struct, frozen=True):
    """One key of a table."""

    name: str
    field: str
    """The field of the struct that stores its value."""
    value: Value
    required: bool
    default: object
    """The default value, as in TOML. None: the key has no default."""
    description: str
    contradicts: tuple[str, ...] = ()
    """Keys that must be absent, or have their default, unless this key is false."""
    options: Mapping[str, str] = {}
    """The descriptions of the options of a choice. Empty if they have none."""
    variables: bool = False
    """Whether ``${NAME}`` in its value is a variable of the environment."""


class Variant(msgspec.Struct, frozen=True):
    """One class of a group, with its keys."""

    type: type[Any]
    choice: str | None
    """The value of the selector that chooses this class; None if the group has only one."""
    keys: tuple[Key, ...]
    description: str

    @property
    def entries(self) -> Entries | None:
        """The type of the entries of a table whose keys are free; None for other tables."""
        values = [key.value for key in self.keys if isinstance(key.value, Entries)]
        return values[0] if values else None

    @property
    def decisive(self) -> Key:
        """The key that chooses this class where there is no selector: its first required one."""
        return next(key for key in self.keys if key.required)

    def key(self, name: str) -> Key | None:
        """Return the key of that name; None if the variant has none."""
        return next((key for key in self.keys if key.name == name), None)

    def needs(self, given: frozenset[str]) -> Iterator[tuple[str, str]]:
        """Yield each key that is missing beside the ``given`` keys, and why it is needed.

        The class decides this in a class method ``problems``, if it has one.
        """
        rule = getattr(self.type, "problems", None)
        if rule is not None:
            yield from rule(given)

    def json_rules(self) -> Mapping[str, object]:
        """Return a JSON Schema of what the constructor of the class refuses beside single values.

        The class has it in a static method ``json_rules``, if there is such a rule. Empty: none.
        """
        rules = getattr(self.type, "json_rules", None)
        return rules() if rules else {}


class Group(msgspec.Struct, frozen=True):
    """The keys of one kind of source, or of the formats of one strategy."""

    table: str
    variants: tuple[Variant, ...]
    """The first is the default."""
    selector: Key | None
    """The key that chooses a variant; None if there is only one, or if the given keys choose."""
    presence: Mapping[str, Presence]
    """By strategy. A strategy that is missing does not accept this group."""
    description: str

    @property
    def alternatives(self) -> list[Key]:
        """The keys of which one must be given to choose a variant; empty if they do not choose."""
        by_key = self.selector is None and len(self.variants) > 1
        return [each.decisive for each in self.variants] if by_key else []

    def chosen(self, data: Mapping[str, object]) -> Variant | None:
        """Return the variant that a table chooses; None if it chooses none or several."""
        if self.selector:
            choice = data.get(self.selector.name, self.selector.default)
            return next((each for each in self.variants if each.choice == choice), None)
        if len(self.variants) == 1:
            return self.variants[0]
        named = [each for each in self.variants if each.decisive.name in data]
        return named[0] if len(named) == 1 else None

    def names(self) -> list[str]:
        """Return the names of all keys, each once, the selector first."""
        selector = [self.selector.name] if self.selector else []
        keys = [key.name for each in self.variants if not each.entries for key in each.keys]
        return list(dict.fromkeys(selector + keys))

    def owners(self, name: str) -> list[Variant]:
        """Return the variants that have a key of that name."""
        return [each for each in self.variants if each.key(name)]


class Table(msgspec.Struct, frozen=True):
    """A table of fledge.toml, with the keys of all strategies."""

    name: str
    groups: tuple[Group, ...]

    @property
    def entries(self) -> Key | None:
        """The key that describes every entry of a table with free keys; None for other tables."""
        keys = self.groups[0].variants[0].keys
        return keys[0] if self.groups[0].variants[0].entries else None

    def by_name(self) -> dict[str, list[Key]]:
        """Return the keys by name: several for a name whose declarations differ."""
        found: dict[str, list[Key]] = {}
        for group in self.groups:
            selector = [group.selector] if group.selector else []
            for key in (*selector, *(key for each in group.variants for key in each.keys)):
                same = found.setdefault(key.name, [])
                if key not in same:
                    same.append(key)
        return found

    def chosen_by(self, key: Key) -> str:
        """Return the setting that chooses a declaration of a key, in TOML; empty if none does."""
        for group in self.groups:
            choices = [str(each.choice) for each in group.variants if key in each.keys]
            if group.selector and choices:
                return f"{group.selector.name} = {' or '.join(map(literal, choices))}"
        return ""

    def descriptions(self, name: str) -> list[str]:
        """Return the descriptions of a key. If there are several, each says what it is for."""
        keys = self.by_name()[name]
        if len({key.description for key in keys}) == 1:
            return [keys[0].description]
        return [f"{self.chosen_by(key)}: {key.description}" for key in keys]

    def only_with(self, name: str) -> str | None:
        """Return the key that must be given beside a key; None if there is no such key."""
        for group in self.groups:
            owners = group.owners(name)
            if group.alternatives and 0 < len(owners) < len(group.variants):
                needed = owners[0].decisive.name
                return needed if needed != name else None
        return None

    def only_for(self, name: str, strategies: tuple[str, ...]) -> list[str]:
        """Return the settings that a key requires, in TOML. Empty if it is always allowed."""
        owners = [group for group in self.groups if name in group.names()]
        taken = {strategy for group in owners for strategy in group.presence}
        needed = [("strategy", [each for each in strategies if each in taken])]
        if len(taken) == len(strategies):
            needed = []
        for group in owners:
            variants = group.owners(name)
            if group.selector and 0 < len(variants) < len(group.variants):
                needed.append((group.selector.name, [str(each.choice) for each in variants]))
        return [f"{key} = {' or '.join(map(literal, values))}" for key, values in needed]


class Schema(msgspec.Struct, frozen=True):
    """The schema of a whole fledge.toml."""

    keys: tuple[Key, ...]
    """The keys of the top-level table."""
    sources: tuple[Group, ...]
    """The groups of the sources, in the order of `SOURCES`."""
    formats: Mapping[str, Group]
    """The groups of the formats, by strategy."""
    settings: tuple[Group, ...]
    """The groups of `SETTINGS`, `SEALING` and `DOCUMENTS`, in the same order."""

    @property
    def strategies(self) -> tuple[str, ...]:
        """The values of ``strategy``."""
        return tuple(self.formats)

    @property
    def tables(self) -> tuple[Table, ...]:
        """All tables. A strategy with a single format without options has no format table."""
        found: dict[str, list[Group]] = {}
        for group in self.sources:
            found.setdefault(group.table, []).append(group)
        for group in self.formats.values():
            if len(group.variants) > 1 or group.variants[0].keys:
                found.setdefault(group.table, []).append(group)
        for group in self.settings:
            found.setdefault(group.table, []).append(group)
        return tuple(Table(name, tuple(groups)) for name, groups in found.items())

    def places(self) -> dict[str, str]:
        """Return where each key belongs, by name, in words that follow "belongs"."""
        found: dict[str, list[str]] = {}
        for table in self.tables:
            for name in () if table.entries else table.by_name():
                found.setdefault(name, []).append(f"[{table.name}]")
        inside = {name: f"in {' or '.join(tables)}" for name, tables in found.items()}
        for key in self.keys:
            other = inside.get(key.name)
            inside[key.name] = f"{TOP}, or {other}" if other else TOP
        return inside


class _Top(msgspec.Struct):
    """The keys of the top-level table, without ``strategy``."""

    version: Annotated[Literal["1"], Meta(description="The version of the file format.")]


def schema() -> Schema:
    """Derive the schema from `SOURCES` and `FORMATS`.

    Raises `TypeError` if a declared type cannot be written in TOML.
    """
    sources = tuple(
        _make_group(kind.table, kind.variants, kind.presence, kind.description) for kind in SOURCES
    )
    formats = {
        strategy: _make_group(
            facts.table,
            tuple(each for each in FORMATS if each.strategy == strategy),
            {strategy: Presence.ALWAYS},
            facts.table_description,
        )
        for strategy, facts in STRATEGIES.items()
    }
    strategy = Key(
        name="strategy",
        field="strategy",
        value=Choice(options=tuple(formats)),
        required=True,
        default=None,
        description="The kind of artifact to build.",
        options={name: facts.description for name, facts in STRATEGIES.items()},
    )
    every = dict.fromkeys(formats, Presence.IF_GIVEN)
    with_table = dict.fromkeys(formats, Presence.IF_TABLE)
    disks = {"oci_rootfs": Presence.IF_TABLE}
    settings = (
        *(_make_group(table, (each,), every, "") for table, each in SETTINGS.items()),
        *(_make_group(table, (each,), disks, "") for table, each in SEALING.items()),
        *(_make_group(table, (each,), with_table, "") for table, each in DOCUMENTS.items()),
    )
    return Schema((*keys_of(_Top), strategy), sources, formats, settings)


@cache
def keys_of(struct: type[Any], *, written_by_fledge: bool = False) -> tuple[Key, ...]:
    """Return the keys that the fields of a struct declare, as `declared` describes."""
    found = []
    for field in msgspec.structs.fields(struct):
        facts = declared(field.name, field.type, written_by_fledge=written_by_fledge)
        found.append(
            Key(
                name=field.encode_name,
                field=field.name,
                value=facts.value,
                required=field.required and not facts.optional,
                default=_default(field),
                description=facts.description,
                contradicts=facts.extra.get("contradicts", ()),
                variables=facts.extra.get("variables", False),
            )
        )
    return tuple(found)


def check_fields(struct: Any) -> None:
    """Raise `ValueError` if a field has a value that the declared key does not accept."""
    kind: type[msgspec.Struct] = type(struct)
    for key in keys_of(kind):
        value = getattr(struct, key.field)
        if value is None and key.default is None and not key.required:
            continue
        try:
            key.value.check(value)
        except ValueError as error:
            raise ValueError(f"{key.field} = {value!r}: {error}") from error


def read_record(
    table: toml.Table, record: type[Record], beside: tuple[str, ...] = ()
) -> Record | None:
    """Read a struct from a table that fledge wrote. None if it has a problem, which is reported.

    A digest is bare digits in a field named ``sha256``, and ``sha256:HEX`` in others. ``beside``
    are keys of the table that the caller reads.
    """
    keys = keys_of(record, written_by_fledge=True)
    table.reject_unknown((*beside, *(key.name for key in keys)))
    fields: dict[str, Any] = {}
    complete = True
    for key in keys:
        if key.required or key.name in table.data:
            fields[key.field] = table.required(key.name, key.value)
            complete = complete and fields[key.field] is not None
        elif key.default is None:
            fields[key.field] = None
    return record(**fields) if complete else None


def record_data(record: msgspec.Struct) -> dict[str, object]:
    """Return a struct as a table that `read_record` can read. Leaves out fields that are None."""
    found: dict[str, object] = {}
    for field in msgspec.structs.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Digest):
            found[field.encode_name] = value.hex if field.name == "sha256" else str(value)
        elif isinstance(value, tuple):
            found[field.encode_name] = [str(each) for each in value]
        elif value is not None:
            found[field.encode_name] = value
    return found


def _make_group(
    table: str, types: tuple[type[Any], ...], presence: Mapping[str, Presence], description: str
) -> Group:
    variants = tuple(_make_variant(each) for each in types)
    selector = None
    if len(variants) > 1 and types[0].__struct_config__.tag_field:
        selector = Key(
            name=types[0].__struct_config__.tag_field,
            field="",
            value=Choice(options=tuple(str(each.choice) for each in variants)),
            required=False,
            default=variants[0].choice,
            description="Selects one of the following.",
            options={str(each.choice): each.description for each in variants},
        )
    return Group(table, variants, selector, presence, description or variants[0].description)


def _make_variant(struct: Any) -> Variant:
    tag = struct.__struct_config__.tag
    return Variant(struct, tag, keys_of(struct), summary(struct))


def summary(of: object) -> str:
    """Return the first paragraph of a docstring, on one line."""
    return " ".join((of.__doc__ or "").partition("\n\n")[0].split())


def _default(field: msgspec.structs.FieldInfo) -> object:
    value = field.default
    if value is msgspec.NODEFAULT or value == ():
        return None
    return value.hex if isinstance(value, Digest) else value
