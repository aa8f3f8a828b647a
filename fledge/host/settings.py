"""The environment of this process, read once.

Nothing else in fledge looks at ``os.environ``: what a variable decides is a field here, so a
library user can decide it without touching the process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from fledge.errors import ConfigError, HostError

DEFAULT_EPOCH = 1704067200
"""2024-01-01T00:00:00Z: the time of all that fledge adds, without SOURCE_DATE_EPOCH."""

MAX_EPOCH = 0xFFFFFFFF
"""The latest second that a newc header can hold."""

DEFAULT_GITHUB_API = "https://api.github.com"


class Settings(msgspec.Struct, frozen=True):
    """What the environment decides. The defaults are those of an empty environment."""

    environment: Mapping[str, str] = msgspec.field(default_factory=dict)
    """All variables, for the programs that need the user's own: credential helpers, docker."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """The settings of this process, or those that a given environment stands for."""
        return cls(dict(os.environ if environment is None else environment))

    def _text(self, name: str) -> str | None:
        """The variable's value; None where it is unset or empty."""
        return self.environment.get(name) or None

    @property
    def cache_folder(self) -> Path:
        """Where the cache is: ``$FLEDGE_CACHE_DIR``, else ``fledge`` in ``$XDG_CACHE_HOME``, else
        ``~/.cache/fledge``.

        A relative ``$XDG_CACHE_HOME`` is invalid and ignored (XDG Base Directory Specification).
        Raises `HostError` where there is no home folder.
        """
        if own := self._text("FLEDGE_CACHE_DIR"):
            return Path(own).absolute()
        shared = Path(self._text("XDG_CACHE_HOME") or "")
        if shared.is_absolute():
            return shared / "fledge"
        home = self.home
        if home is None:
            raise HostError(
                "there is no home folder for the cache",
                "Set FLEDGE_CACHE_DIR to a folder that you can write to.",
            )
        return home / ".cache" / "fledge"

    @property
    def home(self) -> Path | None:
        """The user's home folder: ``$HOME``, else what the password database says."""
        if own := self._text("HOME"):
            return Path(own)
        try:
            return Path.home()
        except RuntimeError:
            return None

    @property
    def epoch(self) -> int:
        """``SOURCE_DATE_EPOCH`` in seconds (reproducible-builds.org), or `DEFAULT_EPOCH`.

        Raises `ConfigError` for what no archive can hold.
        """
        text = self._text("SOURCE_DATE_EPOCH") or str(DEFAULT_EPOCH)
        if text.isascii() and text.isdigit() and int(text) <= MAX_EPOCH:
            return int(text)
        raise ConfigError(
            f"SOURCE_DATE_EPOCH = {text!r} is not a time that an archive can hold",
            f"Set it to whole seconds since 1970, {MAX_EPOCH} at most, or unset it.",
        )

    @property
    def github_api(self) -> str:
        """The base URL for releases: ``$FLEDGE_GITHUB_API``, or GitHub's own."""
        return (self._text("FLEDGE_GITHUB_API") or DEFAULT_GITHUB_API).rstrip("/")

    @property
    def github_token(self) -> str | None:
        """``$GITHUB_TOKEN``, for that API alone."""
        return self._text("GITHUB_TOKEN")

    @property
    def insecure_registries(self) -> frozenset[str]:
        """HOST or HOST:PORT of the registries that may speak plain HTTP."""
        names = (self._text("FLEDGE_INSECURE_REGISTRIES") or "").split(",")
        return frozenset(name.strip() for name in names if name.strip())

    @property
    def docker_config_folder(self) -> Path | None:
        """The folder of Docker's ``config.json``: ``$DOCKER_CONFIG`` or ``~/.docker``."""
        if own := self._text("DOCKER_CONFIG"):
            return Path(own)
        return self.home / ".docker" if self.home else None

    @property
    def docker_context(self) -> str | None:
        """``$DOCKER_CONTEXT``, the name of a context of Docker's."""
        return self._text("DOCKER_CONTEXT")

    @property
    def runtime_folder(self) -> Path | None:
        """``$XDG_RUNTIME_DIR``, where rootless services have their sockets."""
        text = self._text("XDG_RUNTIME_DIR")
        return Path(text) if text else None
