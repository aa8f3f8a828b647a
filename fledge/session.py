"""What the operations of one run share: settings, cache, reporter, network policy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import msgspec

from fledge.host.settings import Settings
from fledge.net.fetch import Fetcher
from fledge.report import Reporter
from fledge.store.cache import Cache


class Session(msgspec.Struct, frozen=True, dict=True):
    """One run of fledge. `Session.default` has what the command line uses, without its output."""

    settings: Settings
    cache: Cache
    reporter: Reporter
    offline: bool = False
    """Use nothing from the network, only the cache."""

    @classmethod
    def default(
        cls,
        *,
        reporter: Reporter | None = None,
        offline: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> Session:
        """A session of this process's environment, or of a given one; silent without a reporter.

        Raises `HostError` where there is no place for a cache.
        """
        settings = Settings.from_environment(environment)
        return cls(settings, Cache(settings.cache_folder), reporter or Reporter(), offline)

    @cached_property
    def fetcher(self) -> Fetcher:
        """What downloads for this session."""
        return Fetcher(self.cache, self.reporter, self.offline)
