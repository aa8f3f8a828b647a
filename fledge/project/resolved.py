"""Lists every value of a config, and where it comes from."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from fledge.host.settings import Settings
from fledge.project import lock, manifest
from fledge.project.config import Config, from_document
from fledge.project.positions import Keys, Position
from fledge.project.schema import Group, Table, record_data, schema
from fledge.project.toml import Document
from fledge.project.values import quoted_key
from fledge.sources.source import Presence

HIDDEN = frozenset({"FLEDGE_KEY_PASSPHRASE"})
"""Variables whose values nobody may see."""

DEFAULT = "default"


class ResolvedKey(msgspec.Struct, frozen=True):
    """One value of a config."""

    key: str
    """The path of the key, such as ``agent.version``."""
    value: object
    """As in TOML."""
    origin: str
    """Where it comes from: ``FILE:LINE``, ``default``, a variable, an option, or fledge.lock."""


def resolve(document: Document, settings: Settings) -> list[ResolvedKey]:
    """Return the values of a config that `config.read_document` has read.

    Raises `InvalidConfig` if it is not valid, `ConfigError` if its lock cannot be read.
    """
    config = from_document(document)
    found = _Origins(document)
    return [
        *_declared(config, found, settings),
        *_locked(config),
        *_environment(settings),
    ]


class _Origins:
    """Tells the origins of the values in a document."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._positions = document.positions()
        self._included = {name: each.positions() for name, each in document.included.items()}

    def given(self, keys: Keys, value: object) -> ResolvedKey:
        """Return a value of the document with its origin."""
        origin = self.document.origins.get(keys) or self._place(keys)
        if names := self.document.variables.get(keys):
            origin += f", {', '.join(names)}"
        return ResolvedKey(_name(keys), value, origin)

    def _place(self, keys: Keys) -> str:
        document, positions = self.document, self._positions
        if keys[0] in self._included:
            document, positions = self.document.included[keys[0]], self._included[keys[0]]
            keys = keys[1:]
        found: Position | None = positions.get(keys)
        return f"{document.path}:{found.line}" if found else str(document.path)


def _declared(config: Config, origins: _Origins, settings: Settings) -> Iterator[ResolvedKey]:
    declared, data = schema(), origins.document.top.data
    for key in declared.keys:
        yield origins.given((key.name,), data[key.name])
    for table in declared.tables:
        for each in _of_table(table, config.strategy, origins):
            override = settings.cache_registry if each.key == "cache.registry" else None
            if override:
                yield ResolvedKey(each.key, override, "FLEDGE_CACHE_REGISTRY")
            else:
                yield each
    if plugin := data.get(manifest.TABLE):
        yield from _leaves((manifest.TABLE,), plugin, origins)


def _of_table(table: Table, strategy: str, origins: _Origins) -> Iterator[ResolvedKey]:
    data = origins.document.top.data.get(table.name, {})
    assert isinstance(data, dict)  # noqa: S101 -- the config is valid
    if table.entries:
        for name, value in data.items():
            yield origins.given((table.name, name), value)
        return
    for group in (each for each in table.groups if _is_present(each, strategy, data)):
        chosen = group.chosen(data)
        for key in (
            *([group.selector] if group.selector else []),
            *(chosen.keys if chosen else ()),
        ):
            keys = (table.name, key.name)
            if key.name in data:
                yield origins.given(keys, data[key.name])
            elif key.default is not None:
                yield ResolvedKey(_name(keys), key.default, DEFAULT)


def _is_present(group: Group, strategy: str, data: dict[str, object]) -> bool:
    """Return whether a valid config has a group; ``data`` is its table."""
    presence = group.presence.get(strategy)
    if presence is Presence.IF_GIVEN:
        return any(name in data for name in group.names())
    return bool(data) if presence is Presence.IF_TABLE else presence is not None


def _leaves(keys: Keys, value: object, origins: _Origins) -> Iterator[ResolvedKey]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _leaves((*keys, name), each, origins)
    else:
        yield origins.given(keys, value)


def _locked(config: Config) -> Iterator[ResolvedKey]:
    path = lock.path_beside(config.path)
    found = lock.load(path)
    for role, locked in (found.sections if found else {}).items():
        for key, pin in locked.pins.items():
            for name, value in record_data(pin).items():
                keys = ("lock", role, *([key] if key else []), name)
                yield ResolvedKey(_name(keys), value, str(path))


def _environment(settings: Settings) -> Iterator[ResolvedKey]:
    environment = settings.environment
    epoch = "SOURCE_DATE_EPOCH" if environment.get("SOURCE_DATE_EPOCH") else DEFAULT
    yield ResolvedKey("epoch", settings.epoch, epoch)
    folder = next(
        (each for each in ("FLEDGE_CACHE_DIR", "XDG_CACHE_HOME") if environment.get(each)), DEFAULT
    )
    yield ResolvedKey("cache-folder", str(settings.cache_folder), folder)
    for name in sorted(environment):
        if name.startswith("FLEDGE_") and name != folder:
            value = "…" if name in HIDDEN else environment[name]
            yield ResolvedKey(name, value, "environment")


def _name(keys: Keys) -> str:
    return ".".join(map(quoted_key, keys))
