"""Fills the cache with the inputs that a lock pins, for builds without a network."""

from __future__ import annotations

from collections.abc import Sequence

from fledge.operations.arguments import (
    ConfigLike,
    PlatformLike,
    as_config,
    as_platforms,
    as_session,
)
from fledge.operations.build import lay_sources
from fledge.project import lock
from fledge.session import Session
from fledge.sources.source import Assembly


def fetch(
    config: ConfigLike = "fledge.toml",
    platforms: Sequence[PlatformLike] | PlatformLike = (),
    *,
    session: Session | None = None,
) -> None:
    """Download into the cache all inputs that builds for these platforms need.

    ``platforms`` defaults to linux on this machine. The inputs are also laid over a temporary
    tree, so that unusable ones are found now. Raises `ConfigError` if the lock is missing or does
    not pin an input, `FledgeError` if an input cannot be downloaded.
    """
    config, session = as_config(config), as_session(session)
    pins = lock.load_pins(config, session.reporter, strict=True)
    folder = config.path.parent
    pinned = [source for source in config.sources if source.pinned_name(folder) is not None]
    for platform in as_platforms(platforms):
        start = Assembly(session, platform, folder, is_platform_given=bool(platforms))
        lay_sources(pinned, pins, start)
