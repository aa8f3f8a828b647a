"""Writes the lock of a config: looks up what its names refer to now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fledge.errors import CorruptError, FledgeError
from fledge.oci.manifest import Platform, parse_platform
from fledge.operations.arguments import (
    ConfigLike,
    PlatformLike,
    as_config,
    as_platforms,
    as_session,
)
from fledge.project import lock as locks
from fledge.project.config import Config
from fledge.project.lock import Lock, LockedSource
from fledge.session import Session
from fledge.sources.source import Assembly, KeyedBy, LockSection, Source
from fledge.tree import TreeError


def lock(
    config: ConfigLike = "fledge.toml",
    platforms: Sequence[PlatformLike] | PlatformLike = (),
    *,
    check: bool = False,
    session: Session | None = None,
) -> Path:
    """Pin what the names in a fledge.toml refer to now, and return the path of the lock.

    ``platforms`` defaults to linux on this machine. Pins of an existing lock for other platforms
    are kept. With ``check``, nothing is written, and an outdated or missing lock is a
    `FledgeError`. Raises `FledgeError` if a lookup fails; an existing lock then stays unchanged.
    """
    config, session = as_config(config), as_session(session)
    path = locks.path_beside(config.path)
    old = locks.load(path)
    new = resolve(
        config, as_platforms(platforms), old, session, are_platforms_given=bool(platforms)
    )
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


def resolve(
    config: Config,
    platforms: Sequence[Platform],
    old: Lock | None,
    session: Session,
    *,
    are_platforms_given: bool,
) -> Lock:
    """Look up what the names of a config refer to now, on these platforms.

    Keeps the pins of ``old`` for other platforms. ``are_platforms_given`` as in `Assembly`. Raises
    `FledgeError`.
    """
    old_sections = old.sections if old else {}
    assemblies = [
        Assembly(session, platform, config.path.parent, is_platform_given=are_platforms_given)
        for platform in platforms
    ]
    sections: dict[str, LockedSource] = {}
    for source in config.sources:
        name, section = source.pinned_name(config.path.parent), source.section
        if name is None or section is None:
            continue
        found = old_sections.get(source.role)
        kept = dict(found.pins) if found and found.name == name else {}
        pins = _resolve_source(source, section, assemblies, kept)
        sections[source.role] = LockedSource(name, {**kept, **pins})
    return Lock(_without_unneeded(config, sections, assemblies))


def _resolve_source(
    source: Source, section: LockSection, assemblies: Sequence[Assembly], kept: dict[str, Any]
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
                pins[key], step.detail = source.resolve(assembly, kept.get(key))
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
