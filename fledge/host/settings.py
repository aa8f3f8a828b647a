"""Reads the environment of this process, once.

No other module of fledge reads ``os.environ``: each variable is a property here, so that users of
the library can set it without changing the process. Two dependencies read the environment
themselves: requests for proxies and CA certificates, docker for the folder of its contexts.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from fledge.errors import ConfigError, HostError

DEFAULT_EPOCH = 1704067200
"""2024-01-01T00:00:00Z, in seconds since 1970: the modification time of everything that fledge
adds, unless SOURCE_DATE_EPOCH is set."""

MAX_EPOCH = 0xFFFFFFFF
"""The latest time that a newc header can store, in seconds since 1970."""

DEFAULT_GITHUB_API = "https://api.github.com"

DEFAULT_MIN_SPEED = 4
"""KiB per second: half of the 64 kbit/s of ISDN, or of a mobile plan whose volume is used up, which
are the slowest links by which people still download."""


class Settings(msgspec.Struct, frozen=True):
    """The settings that environment variables make. `Settings()` is an empty environment."""

    environment: Mapping[str, str] = msgspec.field(default_factory=dict)
    """All variables. Credential helpers and the Docker client get them as they are."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read ``environment``, or the environment of this process if it is None."""
        return cls(dict(os.environ if environment is None else environment))

    def _text(self, name: str) -> str | None:
        """Return a variable's value, or None if it is unset or empty."""
        return self.environment.get(name) or None

    @property
    def cache_folder(self) -> Path:
        """The folder of the cache: ``$FLEDGE_CACHE_DIR``, ``$XDG_CACHE_HOME/fledge`` or
        ``~/.cache/fledge``, whichever is set first.

        A relative ``$XDG_CACHE_HOME`` is invalid and ignored (XDG Base Directory Specification).
        Raises `HostError` if none is set and the user has no home folder.
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
    def cache_registry(self) -> str | None:
        """``$FLEDGE_CACHE_REGISTRY``: the repository in which builds are shared, in place of
        ``[cache] registry``.
        """
        return self._text("FLEDGE_CACHE_REGISTRY")

    @property
    def trusts_cache(self) -> bool:
        """Whether ``$FLEDGE_CACHE_TRUSTED`` says that what the build cache has needs no signature.

        It is any text but ``0``.
        """
        return self._text("FLEDGE_CACHE_TRUSTED") not in (None, "0")

    @property
    def home(self) -> Path | None:
        """The user's home folder: ``$HOME``, or the one in the password database.

        None if there is neither, or if ``$HOME`` is not an absolute path.
        """
        if own := self._text("HOME"):
            path = Path(own)
            return path if path.is_absolute() else None
        try:
            return Path(pwd.getpwuid(os.getuid()).pw_dir)
        except KeyError:
            return None

    @property
    def program_folders(self) -> str:
        """The folders to search for programs, separated by colons: ``$PATH`` or `os.defpath`."""
        return self.environment.get("PATH", os.defpath)

    @property
    def epoch(self) -> int:
        """``$SOURCE_DATE_EPOCH`` (reproducible-builds.org) or `DEFAULT_EPOCH`: the time of
        everything that fledge adds, in seconds since 1970.

        Raises `ConfigError` if it is not a whole number from 0 to `MAX_EPOCH`.
        """
        text = self._text("SOURCE_DATE_EPOCH") or str(DEFAULT_EPOCH)
        if text.isascii() and text.isdigit() and int(text) <= MAX_EPOCH:
            return int(text)
        raise ConfigError(
            f"SOURCE_DATE_EPOCH = {text!r} is not a time that an archive can hold",
            f"Set it to whole seconds since 1970, {MAX_EPOCH} at most, or unset it.",
        )

    @property
    def terminal_is_dumb(self) -> bool:
        """Whether ``$TERM`` says that the terminal knows no control codes."""
        return self.environment.get("TERM") in ("dumb", "unknown")

    @property
    def has_colour(self) -> bool:
        """Whether a terminal may be sent colours: not if ``$NO_COLOR`` is set (no-color.org)."""
        return self._text("NO_COLOR") is None and not self.terminal_is_dumb

    @property
    def forces_colour(self) -> bool:
        """Whether ``$FORCE_COLOR`` asks for colours where there is no terminal
        (force-color.org).
        """
        return self._text("FORCE_COLOR") is not None

    @property
    def github_api(self) -> str:
        """The base URL of the API for releases: ``$FLEDGE_GITHUB_API``, or GitHub's.

        It is a mirror, or ``https://HOST/api/v3`` of GitHub Enterprise.
        """
        return (self._text("FLEDGE_GITHUB_API") or DEFAULT_GITHUB_API).rstrip("/")

    @property
    def github_token(self) -> str | None:
        """``$GITHUB_TOKEN``, which is sent only to the API for releases; None if it is unset."""
        return self._text("GITHUB_TOKEN")

    @property
    def key_passphrase(self) -> str | None:
        """``$FLEDGE_KEY_PASSPHRASE``, which encrypts and decrypts private keys.

        If it is unset (None), commands ask for it on a terminal.
        """
        return self._text("FLEDGE_KEY_PASSPHRASE")

    @property
    def kernel(self) -> Path | None:
        """``$FLEDGE_KERNEL``, the kernel image that boots artifacts; None if it is unset."""
        text = self._text("FLEDGE_KERNEL")
        return Path(text) if text else None

    @property
    def min_speed(self) -> int:
        """Bytes per second below which a download is given up, ``$FLEDGE_MIN_SPEED`` KiB or
        `DEFAULT_MIN_SPEED`. 0: none is too slow.

        It is measured over a minute, and shared by downloads that run at the same time.

        Raises `ConfigError` if it is not a whole number of at most 9 digits.
        """
        text = self._text("FLEDGE_MIN_SPEED") or str(DEFAULT_MIN_SPEED)
        if not re.fullmatch("[0-9]{1,9}", text):
            raise ConfigError(
                f"FLEDGE_MIN_SPEED = {text!r} is not a number of KiB",
                f"Set it to whole KiB per second, such as {DEFAULT_MIN_SPEED}, or unset it.",
            )
        return int(text) << 10

    @property
    def netrc_files(self) -> list[Path]:
        """The files that may hold logins for downloads; the first that exists counts.

        They are ``$NETRC``, or ``~/.netrc`` and ``~/_netrc``. An entry ``default`` is ignored.
        """
        if own := self._text("NETRC"):
            return [Path(own)]
        return [self.home / name for name in (".netrc", "_netrc")] if self.home else []

    @property
    def insecure_registries(self) -> frozenset[str]:
        """HOST or HOST:PORT of each registry that may be used over plain HTTP, from
        ``$FLEDGE_INSECURE_REGISTRIES``.
        """
        names = (self._text("FLEDGE_INSECURE_REGISTRIES") or "").split(",")
        return frozenset(name.strip() for name in names if name.strip())

    @property
    def registry_mirrors(self) -> Mapping[str, list[str]]:
        """The mirrors of registries by their hosts, in the order in which to try them, from
        ``$FLEDGE_REGISTRY_MIRRORS``: ``docker.io=mirror.example/hub,ghcr.io=…``. Digests are
        verified; tags are what the mirror says.

        Raises `ConfigError` if an entry is not ``HOST=MIRROR``.
        """
        mirrors: dict[str, list[str]] = {}
        for entry in (self._text("FLEDGE_REGISTRY_MIRRORS") or "").split(","):
            host, equals, mirror = entry.strip().partition("=")
            if host and mirror and "://" not in entry:
                mirrors.setdefault(host, []).append(mirror)
            elif host or equals:
                raise ConfigError(
                    f"FLEDGE_REGISTRY_MIRRORS has {entry.strip()!r}, which is not HOST=MIRROR",
                    "Write docker.io=MIRROR.EXAMPLE or docker.io=MIRROR.EXAMPLE/PATH, without"
                    " https://, separated by commas.",
                )
        return mirrors

    @property
    def login_files(self) -> list[Path]:
        """The files that may hold logins for registries, whether or not they exist, the first to
        be searched first.

        They are ``$REGISTRY_AUTH_FILE``, Docker's ``config.json``, and the ``auth.json`` of podman,
        skopeo and buildah (containers-auth.json(5)).
        """
        files = []
        if own := self._text("REGISTRY_AUTH_FILE"):
            files.append(Path(own))
        if docker := self.docker_config:
            files.append(docker)
        if runtime := self.runtime_folder:
            files.append(runtime / "containers" / "auth.json")
        else:
            files.append(Path(f"/run/containers/{os.getuid()}/auth.json"))
        if config := self.config_folder:
            files.append(config / "containers" / "auth.json")
        return files

    @property
    def docker_config(self) -> Path | None:
        """Docker's ``config.json``, in ``$DOCKER_CONFIG`` or ``~/.docker``.

        None if the user has no home folder.
        """
        if own := self._text("DOCKER_CONFIG"):
            return Path(own) / "config.json"
        return self.home / ".docker" / "config.json" if self.home else None

    @property
    def config_folder(self) -> Path | None:
        """The folder of the user's configuration: ``$XDG_CONFIG_HOME`` or ``~/.config``.

        None if the user has no home folder.
        """
        own = Path(self._text("XDG_CONFIG_HOME") or "")
        if own.is_absolute():
            return own
        return self.home / ".config" if self.home else None

    @property
    def ca_bundle(self) -> Path | None:
        """``$SSL_CERT_FILE``, a PEM file with the CA certificates to trust; None if it is unset.

        requests reads ``$REQUESTS_CA_BUNDLE`` and ``$CURL_CA_BUNDLE``, which take precedence.
        """
        text = self._text("SSL_CERT_FILE")
        return Path(text) if text else None

    @property
    def docker_context(self) -> str | None:
        """``$DOCKER_CONTEXT``, the name of a Docker context; None if it is unset."""
        return self._text("DOCKER_CONTEXT")

    @property
    def runtime_folder(self) -> Path | None:
        """``$XDG_RUNTIME_DIR``, the folder of rootless services' sockets; None if it is unset."""
        text = self._text("XDG_RUNTIME_DIR")
        return Path(text) if text else None
