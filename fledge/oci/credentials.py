"""Reads logins for registries that docker, podman, skopeo or buildah have stored.

Docker's ``config.json`` is described in docker-login(1), the ``auth.json`` of the others in
containers-auth.json(5), the helper programs in the README of docker/docker-credential-helpers.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

import msgspec

from fledge.errors import ConfigError, FledgeError, HostError, reason
from fledge.host.settings import Settings
from fledge.oci.reference import DOCKER_HUB, Name
from fledge.tree.names import printable
from fledge.tree.regular import read_regular

DOCKER_HUB_KEY = "https://index.docker.io/v1/"
"""The key of Docker Hub in ``config.json``, which differs from its host for historical reasons."""
DOCKER_HUB_HOSTS = {"index.docker.io", "registry-1.docker.io"}
"""Other hosts in keys of Docker Hub."""

MAX_CONFIG_SIZE = 1 << 20
"""Maximum bytes in a file with logins."""
HELPER_TIMEOUT = 60.0
"""Seconds to wait for a helper, which may ask the user to unlock a keyring."""

TOKEN_USER = "<token>"  # noqa: S105
"""The user name that a helper returns if the secret is an identity token."""

NOT_FOUND = "credentials not found in native keychain"
"""The output of a helper that has no login for a registry."""


class Credentials(msgspec.Struct, frozen=True):
    """A login for a registry. Its ``repr`` does not show the secrets."""

    username: str
    """Empty if there is only an identity token."""
    password: str
    source: str
    """The file or helper that it comes from, for messages."""
    identity_token: str = ""
    """An OAuth refresh token, which a token server takes in place of a password. Empty if there
    is none."""

    def __repr__(self) -> str:
        return f"Credentials({self.username!r}, ..., {self.source!r})"


class Search(msgspec.Struct, frozen=True):
    """The result of `find`."""

    credentials: Credentials | None
    """None: no file and no helper has a login."""
    problems: list[FledgeError]
    """The files and helpers that may have a login, but cannot be read or fail."""


def find(name: Name, settings: Settings) -> Search:
    """Look for the user's login for an image: in `Settings.login_files`, in that order.

    In each file a helper for this registry takes precedence over the helper for all registries,
    and that over the logins in the file itself. An image that everybody may pull needs no login,
    so a file or a helper that fails is a problem of the result and not an error.
    """
    problems: list[FledgeError] = []
    for path in settings.login_files:
        try:
            config = _load(path)
        except FledgeError as error:
            problems.append(error)
            continue
        for search in (_ask_helper, _search_entries):
            try:
                if found := search(config, name, path, settings):
                    return Search(found, problems)
            except FledgeError as error:
                problems.append(error)
    return Search(None, problems)


def hosts(path: Path) -> list[str]:
    """Return the registries for which a file has logins, without any secret.

    A helper for all registries is ``*``. Raises `ConfigError` if the file cannot be used.
    """
    config = _load(path)
    found = {*_table(config, "auths", path), *_table(config, "credHelpers", path)}
    if config.get("credsStore"):
        found.add("*")
    return sorted(found)


def _load(path: Path) -> dict[str, object]:
    try:
        raw = read_regular(path, MAX_CONFIG_SIZE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {reason(error)}", "Check its permissions."
        ) from error
    if len(raw) > MAX_CONFIG_SIZE:
        raise _invalid(path, f"it has more than {MAX_CONFIG_SIZE} bytes")
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _invalid(path, "it is not JSON") from error
    if not isinstance(config, dict):
        raise _invalid(path, "it is not a JSON object")
    return config


def _table(config: dict[str, object], key: str, path: Path) -> dict[str, object]:
    table = config.get(key) or {}
    if not isinstance(table, dict):
        raise _invalid(path, f"{key} is not a JSON object")
    return table


def _matching(keys: Iterable[str], name: Name) -> list[str]:
    """Return the keys that are for an image, the most specific first."""
    fits = {key: fit for key in keys if (fit := _fit(key, name)) is not None}
    return sorted(fits, key=fits.__getitem__, reverse=True)


def _fit(key: str, name: Name) -> int | None:
    """Return how well a key fits an image, None if it is for others.

    A key is a host, or a host and the first components of a repository: 1 or more. Docker takes a
    key that begins with the host for every repository of that host, whatever follows: 0.
    """
    _, scheme, rest = key.rpartition("://")
    host, _, path = rest.lower().partition("/")
    if host in DOCKER_HUB_HOSTS:
        host = DOCKER_HUB
    if host != name.host.lower():
        return None
    path = path.strip("/")
    if not path or path in ("v1", "v2"):
        return 1
    if not scheme and f"{name.repository}/".startswith(f"{path}/"):
        return 1 + len(path)
    return 0


def _search_entries(
    config: dict[str, object], name: Name, path: Path, _: Settings
) -> Credentials | None:
    """Return the login in ``auths``."""
    entries = _table(config, "auths", path)
    for key in _matching(entries, name):
        if found := _from_entry(entries[key], key, path):
            return found
    return None


def _from_entry(entry: object, key: str, path: Path) -> Credentials | None:
    """Read an entry of ``auths``. Docker writes an empty one if a helper has the secret."""
    if not isinstance(entry, dict):
        raise _invalid(path, f"auths {key} is not a JSON object")
    fields = ("auth", "identitytoken", "username", "password")
    auth, token, username, password = (entry.get(field) or "" for field in fields)
    if not all(isinstance(value, str) for value in (auth, token, username, password)):
        raise _invalid(path, f"auths {key} has a value that is not a string")
    if auth:
        try:
            # People wrap long lines, and Go's decoder skips line breaks too.
            login = base64.b64decode("".join(auth.split()), validate=True).decode()
        except ValueError:
            login = ""
        username, colon, password = login.partition(":")
        if not colon:
            raise _invalid(path, f"auth of {key} is not the base64 of USER:PASSWORD")
        password = password.strip("\0")  # Docker pads it with NULs
    if not username and not token:
        return None
    return Credentials(username, password, str(path), token)


def _ask_helper(
    config: dict[str, object], name: Name, path: Path, settings: Settings
) -> Credentials | None:
    """Return the login that ``docker-credential-HELPER get`` prints."""
    helpers = _table(config, "credHelpers", path)
    key = next((key for key in _matching(helpers, name) if _fit(key, name)), None)
    helper = helpers[key] if key else config.get("credsStore")
    key = key or (DOCKER_HUB_KEY if name.host == DOCKER_HUB else name.host)
    if not helper:
        return None
    if not isinstance(helper, str) or "/" in helper or not helper.isprintable():
        raise _invalid(path, f"{helper!r} is not the name of a credential helper")
    program = f"docker-credential-{helper}"
    try:
        # A helper needs the user's environment to find the keyring and its own login.
        done = subprocess.run(
            [program, "get"],
            input=key.encode(errors="replace"),
            capture_output=True,
            timeout=HELPER_TIMEOUT,
            check=False,
            env={**settings.environment, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise HostError(
            f"{path} names the credential helper {program}, which is not installed",
            f"Install it, or remove it from {path}.",
        ) from error
    except OSError as error:
        raise _helper_failed(program, key, reason(error)) from error
    except subprocess.TimeoutExpired as error:
        raise _helper_failed(program, key, f"no answer in {HELPER_TIMEOUT:g} s") from error
    # Helpers print the reason of a failure to their standard output.
    output = printable((done.stdout.strip() or done.stderr.strip())[:1000])
    if done.returncode != 0:
        if NOT_FOUND in output:
            return None
        raise _helper_failed(program, key, output)
    try:
        answer = json.loads(done.stdout)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise _helper_failed(program, key, "its answer is not of the expected form") from error
    if username == TOKEN_USER:
        return Credentials("", "", program, secret)
    return Credentials(username, secret, program)


def _helper_failed(program: str, key: str, problem: str) -> HostError:
    return HostError(
        f"{program} get failed for {printable(key)}: {problem}",
        f"Try it by hand: echo {printable(key)} | {program} get.",
    )


def _invalid(path: Path, problem: str) -> ConfigError:
    return ConfigError(
        f"{path}: {printable(problem)}", "Repair it, or remove it and log in to the registry again."
    )
