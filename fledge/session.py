"""The state that all operations of one run share: settings, cache, reporter, network policy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from fledge.host.settings import Settings
from fledge.net.pace import Pace
from fledge.report import Reporter
from fledge.store.cache import Cache

if TYPE_CHECKING:
    from fledge.net.fetch import Fetcher


class Session(msgspec.Struct, frozen=True, dict=True):
    """One run of fledge. `Session.default` makes the session that the command line uses."""

    settings: Settings
    cache: Cache
    reporter: Reporter
    offline: bool = False
    """Use only the cache, never the network."""
    backoff: float = 0.5
    """Seconds before the first retry of a download; each further pause is twice as long."""

    @classmethod
    def default(
        cls,
        *,
        reporter: Reporter | None = None,
        offline: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> Session:
        """Make a session from ``environment``, or from the environment of this process.

        Without a ``reporter`` it is silent. Proxies, CA certificates and Docker contexts come from
        the environment of this process in any case (see `fledge.host.settings`). Raises `HostError`
        if the user has no home folder to keep a cache in.
        """
        settings = Settings.from_environment(environment)
        return cls(settings, Cache(settings.cache_folder), reporter or Reporter(), offline)

    @cached_property
    def pace(self) -> Pace:
        """The `Pace` that all downloads of this session share. Raises `ConfigError`."""
        return Pace(self.settings.min_speed)

    @cached_property
    def fetcher(self) -> Fetcher:
        """The `Fetcher` that all downloads of this session share."""
        # Imported here because requests is slow to import, and many builds download nothing.
        from fledge.net.certificates import SYSTEM_FOLDERS, Certificates  # noqa: PLC0415
        from fledge.net.fetch import Fetcher  # noqa: PLC0415
        from fledge.net.transport import Transport  # noqa: PLC0415

        folders = SYSTEM_FOLDERS
        if config := self.settings.config_folder:
            folders = (config / "containers" / "certs.d", *folders)
        certificates = Certificates(self.settings.ca_bundle, folders)
        transport = Transport(certificates, self.settings.netrc_files, self.pace)
        return Fetcher(self.cache, self.reporter, self.offline, self.backoff, transport)
