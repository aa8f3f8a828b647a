"""Writes the lock of a config: looks up what its names refer to now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from fledge.errors import CorruptError, FledgeError
from fledge.oci.manifest import parse_platform
from fledge.operations.arguments import (
    ConfigLike,
    PlatformLike,
    as_config,
    as_platforms,
    as_session,
)
from fledge.project import lock as locks
from fledge.project.config import Config
from fledge.project.lock import Lock, LockedSource, PinFinder
from fledge.session import Session
from fledge.sources.source import Assembly, KeyedBy, LockSection, Source
from fledge.tree import TreeError


def lock(
    config: ConfigLike = "fledge.toml",
    platforms: Sequence[PlatformLike] | PlatformLike = (),
    *,
    check: bool = False,
    session: Session | None = None,
    lookups: Lookups | None = None,
) -> Path:
    """Pin what the names in a fledge.toml refer to now, and return the path of the lock.

    ``platforms`` defaults to linux on this machine. Pins of an existing lock for other platforms
    are kept. With ``check``, nothing is written, and an outdated or missing lock is a
    `FledgeError`. Locks that share ``lookups`` look up each name once. Raises `FledgeError` if a
    lookup fails; an existing lock then stays unchanged.
    """
    config, session = as_config(config), as_session(session)
    path = locks.path_beside(config.path)
    old = locks.load(path)
    assemblies = [
        Assembly(session, platform, config.path.parent, is_platform_given=bool(platforms))
        for platform in as_platforms(platforms)
    ]
    new = resolve(config, assemblies, old, lookups or Lookups())
    changes = locks.differences(old, new) if old else []
    if check and old is None:
        raise FledgeError(f"{path} does not exist", "Run `fledge lock` to write it.")
    if check and new != old:
        raise FledgeError(f"{path} is not up to date:", locks.REFRESH_HINT, changes)
    if new != old:
        locks.write(new, path, config.path)
        for line in changes:
            session.reporter.note(line)
    return path


class Lookups:
    """Looks up what names refer to, each name once.

    So projects that name the same image or agent get the same one, and servers are asked once.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[Source, str, Any], tuple[Any, str] | FledgeError] = {}

    def resolve(self, source: Source, assembly: Assembly, old: Any | None) -> tuple[Any, str]:
        """Do as `Source.resolve` does. Raises the same error for the same name."""
        if source.section is None or source.section.keyed_by is None:
            # Its pin is in fledge.toml, and looking it up sets the architecture of the assembly.
            return source.resolve(assembly, old)
        key = source, source.section.key(assembly), old
        if key not in self._found:
            try:
                self._found[key] = source.resolve(assembly, old)
            except FledgeError as error:
                self._found[key] = error
        found = self._found[key]
        if isinstance(found, FledgeError):
            raise found
        return found


def resolve(
    config: Config, assemblies: Sequence[Assembly], old: Lock | None, lookups: Lookups
) -> Lock:
    """Look up what the names of a config refer to now, for each of the empty assemblies.

    Keeps the pins of ``old`` for other platforms. Raises `FledgeError`.
    """
    old_sections = old.sections if old else {}
    sections: dict[str, LockedSource] = {}
    for source in config.sources:
        name, section = source.pinned_name(config.path.parent), source.section
        if name is None or section is None:
            continue
        found = old_sections.get(source.role)
        kept = dict(found.pins) if found and found.name == name else {}
        pins = _resolve_source(source, section, assemblies, kept, lookups)
        sections[source.role] = LockedSource(name, {**kept, **pins})
    return Lock(_without_unneeded(config, sections, assemblies))


def fill(pins: PinFinder, assembly: Assembly, lookups: Lookups) -> PinFinder:
    """Look up what a lock does not pin, for a build that begins with this empty assembly.

    Returns ``pins`` if the lock pins all names. Raises `ConfigError` if something must not be
    missing, `FledgeError` if a lookup fails.
    """
    if pins.has_all_names():
        return pins
    sections: dict[str, LockedSource] = {}
    for source in pins.config.sources:
        name, section = source.pinned_name(pins.config.path.parent), source.section
        if name is None or section is None:
            continue
        pin = pins.find(source, assembly)
        if pin is None or section.keyed_by is None:
            found = _resolve_source(source, section, [assembly], {}, lookups)
            pin = pin or found[section.key(assembly)]
        sections[source.role] = LockedSource(name, {section.key(assembly): pin})
    return msgspec.structs.replace(pins, lock=Lock(sections))


def _resolve_source(
    source: Source,
    section: LockSection,
    assemblies: Sequence[Assembly],
    kept: dict[str, Any],
    lookups: Lookups,
) -> dict[str, Any]:
    """Look up the pins of one source that the assemblies need, each once."""
    pins: dict[str, Any] = {}
    for assembly in assemblies:
        key = section.key(assembly)
        # A source with a single pin, such as busybox, may not fit every platform.
        if key in pins and section.keyed_by is not None:
            continue
        with assembly.session.reporter.step(source.role) as step:
            try:
                pins[key], step.detail = lookups.resolve(source, assembly, kept.get(key))
            except TreeError as error:
                raise CorruptError(
                    f"the {source.role} cannot be added to the tree: {error}"
                ) from error
    return pins


def _without_unneeded(
    config: Config, sections: dict[str, LockedSource], assemblies: Sequence[Assembly]
) -> dict[str, LockedSource]:
    """Drop the pins for architectures that no pinned platform has any more."""
    keyed_by = {source.role: source.section.keyed_by for source in config.sources if source.section}
    needed = {assembly.architecture for assembly in assemblies}
    for role, named in sections.items():
        if keyed_by[role] is KeyedBy.PLATFORM:
            needed |= {parse_platform(key).architecture for key in named.pins}
    return {
        role: LockedSource(
            named.name, {key: named.pins[key] for key in named.pins if key in needed}
        )
        if keyed_by[role] is KeyedBy.ARCHITECTURE
        else named
        for role, named in sections.items()
    }
