"""Reads user names and passwords for registries from Docker's configuration.

``config.json`` is described in docker-login(1), the helper programs in the README of
docker/docker-credential-helpers.
"""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from fledge.errors import ConfigError, FledgeError, HostError
from fledge.host.settings import Settings
from fledge.oci.reference import DOCKER_HUB
from fledge.tree.names import printable

DOCKER_HUB_KEY = "https://index.docker.io/v1/"
"""The key of Docker Hub in ``config.json``, which differs from its host for historical reasons."""

MAX_CONFIG_SIZE = 1 << 20
"""Maximum bytes in ``config.json``."""
HELPER_TIMEOUT = 60.0
"""Seconds to wait for a helper, which may ask the user to unlock a keyring."""

TOKEN_USER = "<token>"  # noqa: S105
"""The user name that a helper returns if the secret is an identity token."""

NOT_FOUND = "credentials not found in native keychain"
"""The output of a helper that has no login for a registry."""


class Credentials(msgspec.Struct, frozen=True):
    """A login for a registry. Its ``repr`` does not show the password."""

    username: str
    password: str
    source: str
    """The file or helper that it comes from, for messages."""

    def __repr__(self) -> str:
        return f"Credentials({self.username!r}, ..., {self.source!r})"


def find(host: str, settings: Settings) -> Credentials | None:
    """Return the user's login for a registry, or None if there is none.

    A helper for this host takes precedence over the helper for all hosts, and that over the
    logins in the file itself. Raises `ConfigError` if the file cannot be read or is malformed,
    `HostError` if a helper fails.
    """
    path = config_path(settings)
    config = _load(path)
    key = DOCKER_HUB_KEY if host == DOCKER_HUB else host
    helper = _table(config, "credHelpers", path).get(key) or config.get("credsStore")
    if helper:
        if not isinstance(helper, str) or "/" in helper:
            raise _invalid(path, f"{helper!r} is not the name of a credential helper")
        if found := _from_helper(helper, key, settings):
            return found
    for name, entry in _table(config, "auths", path).items():
        # Older versions of Docker use the registry's URL as the key.
        if name == key or (urlsplit(name).netloc == host and host != DOCKER_HUB):
            return _from_entry(entry, name, path)
    return None


def config_path(settings: Settings) -> Path:
    """Return the path of Docker's ``config.json`` for this user, whether or not it exists.

    Raises `HostError` if the user has no home folder and DOCKER_CONFIG is not set.
    """
    folder = settings.docker_config_folder
    if folder is None:
        raise HostError(
            "there is no home folder with a .docker/config.json",
            "Set DOCKER_CONFIG to the folder of such a file, or HOME.",
        )
    return folder / "config.json"


def _load(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_SIZE + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"{path} cannot be read: {reason}", "Check its permissions, or set DOCKER_CONFIG."
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


def _from_entry(entry: object, name: str, path: Path) -> Credentials | None:
    """Read an entry of ``auths``. Docker writes an empty one if a helper has the secret."""
    if not isinstance(entry, dict):
        raise _invalid(path, f"auths {name} is not a JSON object")
    if entry.get("identitytoken"):
        raise _identity_token(f"{path} auths {name}")
    auth = entry.get("auth")
    if not auth:
        return None
    try:
        login = base64.b64decode(str(auth), validate=True).decode()
    except ValueError:
        login = ""
    username, colon, password = login.partition(":")
    if not colon:
        raise _invalid(path, f"auth of {name} is not the base64 of USER:PASSWORD")
    # Docker pads the password with NULs.
    return Credentials(username, password.strip("\0"), str(path))


def _from_helper(helper: str, key: str, settings: Settings) -> Credentials | None:
    """Run ``docker-credential-HELPER get``."""
    program = f"docker-credential-{helper}"
    try:
        # A helper needs the user's environment to find the keyring and its own login.
        done = subprocess.run(
            [program, "get"],
            input=key.encode(),
            capture_output=True,
            timeout=HELPER_TIMEOUT,
            check=False,
            env={**settings.environment, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise HostError(
            f"{config_path(settings)} names the credential helper {program}, which is not"
            " installed",
            "Install it, or set DOCKER_CONFIG to a folder whose config.json does not name it.",
        ) from error
    except OSError as error:
        raise _helper_failed(program, key, (error.strerror or str(error)).lower()) from error
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
        username, password = answer["Username"], answer["Secret"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise _helper_failed(program, key, "its answer is not of the expected form") from error
    if username == TOKEN_USER:
        raise _identity_token(program)
    return Credentials(str(username), str(password), program)


def _identity_token(where: str) -> FledgeError:
    return ConfigError(
        f"{where} has an identity token, which fledge cannot use",
        "Log in with a user name and a password or access token: docker login -u USER HOST.",
    )


def _helper_failed(program: str, key: str, reason: str) -> HostError:
    return HostError(
        f"{program} get failed for {key}: {reason}",
        f"Try it by hand: echo {key} | {program} get.",
    )


def _invalid(path: Path, problem: str) -> ConfigError:
    return ConfigError(f"{path}: {problem}", "Repair it, or let docker login write a new one.")
