"""Converts the arguments of operations, which accept plain strings and paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fledge.host.files import PathLike
from fledge.oci.manifest import Platform, host_platform, parse_platform
from fledge.project import config as configs
from fledge.project.config import Config
from fledge.session import Session
from fledge.sources.source import Assembly

ConfigLike = Config | PathLike
"""A config, or the path of its fledge.toml."""
PlatformLike = Platform | str
"""A platform, or its text, such as ``linux/amd64``."""


def as_config(
    config: ConfigLike, manifest: PathLike | None = None, changes: Sequence[str] = ()
) -> Config:
    """Return a config; read it, and the file ``manifest``, if ``config`` is a path.

    ``changes`` are keys to set in it, such as ``agent.version=v1.2``. Raises `ConfigError`.
    """
    if isinstance(config, Config):
        return config
    return configs.load(Path(config), Path(manifest) if manifest else None, changes)


def as_platform(platform: PlatformLike | None) -> Platform:
    """Return a platform. None: linux on this machine. Raises `ConfigError`."""
    if platform is None:
        return host_platform()
    return parse_platform(platform) if isinstance(platform, str) else platform


def as_platforms(platforms: Sequence[PlatformLike] | PlatformLike) -> list[Platform]:
    """Return platforms without duplicates. Empty: linux on this machine. Raises `ConfigError`."""
    if isinstance(platforms, str | Platform):
        platforms = [platforms]
    return list(dict.fromkeys(map(as_platform, platforms))) or [host_platform()]


def start_assembly(config: Config, platform: PlatformLike | None, session: Session) -> Assembly:
    """Return an empty assembly for the artifact of a config. Raises `ConfigError`.

    None: the platform is linux on this machine, unless a source chooses another.
    """
    return Assembly(
        session,
        as_platform(platform),
        config.path.parent,
        session.settings.epoch,
        is_platform_given=platform is not None,
    )


def as_session(session: Session | None) -> Session:
    """Return a session. None: a silent one with the environment of this process."""
    return session or Session.default()
