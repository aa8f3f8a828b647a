"""Reads and writes ``fledge.lock``, which pins what the names in ``fledge.toml`` refer to.

The lock is beside the fledge.toml. It is TOML, sorted and with one digest in a line, so that people
can review its changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from fledge.errors import ConfigError, CorruptError, FledgeError, MalformedError
from fledge.host.files import replacing
from fledge.oci.manifest import parse_platform
from fledge.project import provenance, schema, toml
from fledge.project.config import Config
from fledge.project.declarations import declared
from fledge.project.provenance import Provenance
from fledge.project.toml import Document, InvalidConfig, Table
from fledge.report import Reporter
from fledge.sources import ownfiles
from fledge.sources.kinds import SOURCES
from fledge.sources.source import Assembly, KeyedBy, LockSection, Source
from fledge.tree.digest import Digest
from fledge.tree.names import printable

VERSION = "1"
HEADER = (
    ownfiles.LOCK_START
    + """{} stand for, written by `fledge lock`.
# Keep it beside that file, in version control.

"""
)
REFRESH_HINT = "Run `fledge lock`, with --platform for another platform, and review its changes."
_ARCHITECTURE = re.compile(r"[a-z0-9]+")


class LockedSource(msgspec.Struct, frozen=True):
    """The pins of one source."""

    name: str
    """The pinned name, as returned by `Source.pinned_name`."""
    pins: Mapping[str, Any]
    """The pins by `LockSection.key`. Their type is `LockSection.pin`."""


class Lock(msgspec.Struct, frozen=True):
    """The content of a ``fledge.lock``."""

    sections: Mapping[str, LockedSource] = msgspec.field(default_factory=dict)
    """The pinned sources by role."""


class PinFinder(msgspec.Struct, frozen=True):
    """Finds the pins of a config in a lock, and reports or refuses sources without one."""

    config: Config
    path: Path
    lock: Lock | None
    """None: the file does not exist. Nothing is pinned then, which is not reported."""
    strict: bool
    """Whether a source without a pin is an error."""
    reporter: Reporter

    def find(self, source: Source, assembly: Assembly) -> Any | None:
        """Return the pin of a source. None if it needs no pin, or the lock has none.

        A missing pin is reported; with ``strict`` it raises `ConfigError`.
        """
        name = source.pinned_name(self.config.path.parent)
        if name is None or source.section is None:
            return None
        problem, pin = self._find(source, name, source.section.key(assembly), assembly)
        if problem and self.strict:
            raise ConfigError(f"{self.path} {problem}", REFRESH_HINT)
        if problem and self.lock:
            self.reporter.note(f"{self.path} {problem}")
        return pin

    def has_all_names(self) -> bool:
        """Return whether the lock pins every name that may move, for whatever platforms."""
        names = {
            source.role: source.pinned_name(self.config.path.parent)
            for source in self.config.sources
            if source.section and source.section.keyed_by
        }
        pinned = self.lock.sections if self.lock else {}
        return all(role in pinned and pinned[role].name == name for role, name in names.items())

    def check_project(self, assembly: Assembly) -> None:
        """Raise `ConfigError` if a pin for an artifact contradicts the project as it is."""
        for source in self.config.sources:
            found = self.lock.sections.get(source.role) if self.lock else None
            pin = found.pins.get(source.section.key(assembly)) if found and source.section else None
            if pin and (conflict := source.conflict(pin, assembly)):
                raise ConfigError(f"{self.path} pins {conflict}", REFRESH_HINT)

    def _find(
        self, source: Source, name: str, key: str, assembly: Assembly
    ) -> tuple[str, Any | None]:
        """Return why the lock has no pin, or an empty text and the pin."""
        role = source.role
        found = self.lock.sections.get(role) if self.lock else None
        if found is None:
            return f"does not pin the {role} {name}", None
        if found.name != name:
            config = self.config.path.name
            return f"pins the {role} {found.name}, but {config} names {name}", None
        if key not in found.pins:
            others = f"only for {', '.join(sorted(found.pins))}, " if found.pins else ""
            return f"pins the {role} {name} {others}not for {key}", None
        pin = found.pins[key]
        if conflict := source.conflict(pin, assembly):
            return f"pins {conflict}", None
        if assembly.trusts_pins and (loss := source.loss(pin, assembly.session)):
            return f"pins {loss}", None
        return "", pin


def path_beside(config: Path) -> Path:
    """Return the path of a config's lock: ``fledge.lock`` for ``fledge.toml``."""
    if config.suffix == ".toml":
        return config.with_suffix(".lock")
    return config.with_name(config.name + ".lock")


def load_pins(config: Config, reporter: Reporter, *, strict: bool) -> PinFinder:
    """Read the lock of a config.

    Raises `ConfigError` if the lock is invalid, or if it is missing and ``strict`` is true.
    """
    path = path_beside(config.path)
    lock = load(path)
    if strict and lock is None:
        raise ConfigError(f"{path} does not exist", "Run `fledge lock` to write it.")
    return PinFinder(config, path, lock, strict, reporter)


def from_provenance(record: Provenance, config: Config) -> Lock:
    """Make a lock that pins the recorded inputs of a build.

    Where the lock of the project pins a recorded digest, its pin is taken: it also says where the
    input comes from, which a record is not trusted to say. Raises `CorruptError` if the record of
    an input is malformed.
    """
    own = load(path_beside(config.path)) or Lock()
    sections: dict[str, LockedSource] = {}
    try:
        for source in config.sources:
            name = source.pinned_name(config.path.parent)
            for item in record.inputs:
                if name is not None and item.role == source.role:
                    key, pin = source.recorded_pin(item, record.platform)
                    mine = own.sections.get(source.role, LockedSource(name, {}))
                    if has_digest(mine.pins.get(key), item.digest):
                        pin = mine.pins[key]
                    sections[source.role] = LockedSource(name, {key: pin})
    except (MalformedError, msgspec.ValidationError) as error:
        raise CorruptError(
            f"the provenance of {record.name}: {error}", provenance.PROVENANCE_HINT
        ) from error
    return Lock(sections)


def has_digest(pin: msgspec.Struct | None, digest: Digest) -> bool:
    """Return whether a pin names that digest."""
    return pin is not None and digest in (getattr(pin, name) for name in pin.__struct_fields__)


def load(path: Path) -> Lock | None:
    """Read a lock. None if the file does not exist.

    Raises `InvalidConfig` with all problems of the file, `ConfigError` if it cannot be read.
    """
    if not path.exists():
        return None
    try:
        return _parse(toml.read(path, ""))
    except ConfigError as error:
        error.hint = "Restore it from version control, or delete it and run `fledge lock`."
        raise


def write(lock: Lock, path: Path, config: Path) -> None:
    """Write the lock of ``config`` to ``path``, atomically.

    Raises `CorruptError` if a server sent a value that `load` would refuse, `FledgeError` if the
    file cannot be written.
    """
    document = _to_toml(lock)
    try:
        if _parse(Document(path, document)) != lock:
            raise CorruptError("a lock cannot store what the servers sent")
    except InvalidConfig as error:
        problems = "; ".join(problem.message for problem in error.problems)
        raise CorruptError(f"a lock cannot store what the servers sent: {problems}") from error
    text = HEADER.format(printable(config.name)) + tomli_w.dumps(document)
    try:
        with replacing(path) as file:
            file.write(text.encode())
    except FledgeError as error:
        error.hint = f"Check that you can write to {path.parent}, and that its disk has space."
        raise


def differences(old: Lock, new: Lock) -> list[str]:
    """Describe each value that differs between two locks, in one line each."""
    before = dict(_flatten(_to_toml(old), ""))
    after = dict(_flatten(_to_toml(new), ""))
    return [
        f"{key}: {after.get(key, 'nothing')}, was {before.get(key, 'nothing')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def lock_sections() -> dict[str, LockSection]:
    """Return the sections that a lock can have, by role, in the order of the file.

    Sources with a single pin come last: the config pins them too, so they rarely change.
    """
    found = {
        variant.role: variant.section
        for kind in SOURCES
        for variant in kind.variants
        if variant.section
    }
    return dict(sorted(found.items(), key=lambda item: item[1].keyed_by is None))


def _parse(document: Document) -> Lock:
    """Parse a lock. Raises `InvalidConfig`."""
    top = document.top
    found = lock_sections()
    top.reject_unknown(("version", *found))
    if top.text("version", VERSION) not in (None, VERSION):
        top.report_value("version", f'this fledge reads version = "{VERSION}"')
    named = {
        role: _read_section(top.table(role), found[role]) for role in found if role in top.data
    }
    document.finish()
    return Lock(named)


def _read_section(table: Table, section: LockSection) -> LockedSource:
    """Read one section. Reports problems; the result is usable only if there are none."""
    named = declared(section.name_key, section.name_type).value
    name = str(table.required(section.name_key, named) or "")
    pins: dict[str, Any] = {}
    if section.keyed_by is None:
        pins[""] = schema.read_record(table, section.pin, beside=(section.name_key,))
        return LockedSource(name, pins)
    table.reject_unknown((section.name_key, section.keyed_by.value))
    for key, each in table.table(section.keyed_by.value).tables():
        if problem := _key_problem(key, section.keyed_by):
            each.report(problem)
        else:
            pins[key] = schema.read_record(each, section.pin)
    return LockedSource(name, pins)


def _key_problem(key: str, keyed_by: KeyedBy) -> str | None:
    """Return what is wrong with the key of a pin; None if it is valid."""
    if keyed_by is KeyedBy.ARCHITECTURE:
        valid = bool(_ARCHITECTURE.fullmatch(key))
        return None if valid else "the key must be an architecture, such as amd64"
    try:
        valid = str(parse_platform(key)) == key
    except ConfigError:
        valid = False
    return None if valid else 'the key must be a platform, such as "linux/amd64"'


def _to_toml(lock: Lock) -> dict[str, object]:
    """Return the lock as TOML data, in the order of the file."""
    document: dict[str, object] = {"version": VERSION}
    for role, section in lock_sections().items():
        if found := lock.sections.get(role):
            pins = {key: schema.record_data(pin) for key, pin in sorted(found.pins.items())}
            inside = {section.keyed_by.value: pins} if section.keyed_by else pins[""]
            document[role] = {section.name_key: found.name, **inside}
    return document


def _flatten(document: Mapping[str, object], prefix: str) -> Iterator[tuple[str, str]]:
    """Yield every value with its path of keys."""
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key} ")
        elif isinstance(value, list):
            yield from ((f"{prefix}{key} {number}", each) for number, each in enumerate(value))
        else:
            yield prefix + key, str(value)
