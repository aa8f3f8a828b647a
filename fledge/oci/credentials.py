"""User names and passwords for registries, from where Docker keeps them (read only).

``config.json`` is described in docker-login(1), the helper programs in the README of
docker/docker-credential-helpers.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from fledge.errors import ConfigError, FledgeError, HostError
from fledge.oci.reference import DOCKER_HUB
from fledge.tree.names import printable

DOCKER_HUB_KEY = "https://index.docker.io/v1/"
"""What Docker calls its own registry, for historical reasons."""

MAX_CONFIG_SIZE = 1 << 20
HELPER_TIMEOUT = 60.0
"""Seconds; a helper may ask the user to unlock a keyring."""

TOKEN_USER = "<token>"  # noqa: S105
"""The user name with which a helper says that the secret is an identity token."""

NOT_FOUND = "credentials not found in native keychain"


class Credentials(msgspec.Struct, frozen=True):
    username: str
    password: str
    source: str
    """The file or helper that has them; for people."""

    def __repr__(self) -> str:
        return f"Credentials({self.username!r}, ..., {self.source!r})"


def find(host: str) -> Credentials | None:
    """The user's login for a registry, or None.

    A helper for that host goes before the one for all hosts, and that before the file itself.
    Raises `ConfigError` if the file is not as it should be, `HostError` if a helper fails.
    """
    path = config_path()
    config = _load(path)
    key = DOCKER_HUB_KEY if host == DOCKER_HUB else host
    helper = _table(config, "credHelpers", path).get(key) or config.get("credsStore")
    if helper:
        if not isinstance(helper, str) or "/" in helper:
            raise _wrong(path, f"{helper!r} is not the name of a credential helper")
        if found := _from_helper(helper, key):
            return found
    for name, entry in _table(config, "auths", path).items():
        # Older versions of Docker wrote the URL of the registry there.
        if name == key or (urlsplit(name).netloc == host and host != DOCKER_HUB):
            return _from_entry(entry, name, path)
    return None


def config_path() -> Path:
    """Docker's ``config.json`` for this user, whether or not it exists. Raises `HostError`."""
    if folder := os.environ.get("DOCKER_CONFIG"):
        return Path(folder) / "config.json"
    try:
        return Path.home() / ".docker" / "config.json"
    except RuntimeError:
        raise HostError(
            "there is no home folder with a .docker/config.json",
            "Set DOCKER_CONFIG to the folder of such a file, or HOME.",
        ) from None


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
        ) from None
    if len(raw) > MAX_CONFIG_SIZE:
        raise _wrong(path, f"it has more than {MAX_CONFIG_SIZE} bytes")
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError):
        raise _wrong(path, "it is not JSON") from None
    if not isinstance(config, dict):
        raise _wrong(path, "it is not a JSON object")
    return config


def _table(config: dict[str, object], key: str, path: Path) -> dict[str, object]:
    table = config.get(key) or {}
    if not isinstance(table, dict):
        raise _wrong(path, f"{key} is not a JSON object")
    return table


def _from_entry(entry: object, name: str, path: Path) -> Credentials | None:
    """One entry of ``auths``; Docker leaves an empty one where a helper has the secret."""
    if not isinstance(entry, dict):
        raise _wrong(path, f"auths {name} is not a JSON object")
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
        raise _wrong(path, f"auth of {name} is not the base64 of USER:PASSWORD")
    # Docker pads the password with NULs.
    return Credentials(username, password.strip("\0"), str(path))


def _from_helper(helper: str, key: str) -> Credentials | None:
    """What ``docker-credential-HELPER get`` knows about a registry."""
    program = f"docker-credential-{helper}"
    try:
        # With the user's environment: a helper finds the keyring, and its own login, by it.
        done = subprocess.run(
            [program, "get"],
            input=key.encode(),
            capture_output=True,
            timeout=HELPER_TIMEOUT,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise HostError(
            f"{config_path()} names the credential helper {program}, which is not installed",
            "Install it, or set DOCKER_CONFIG to a folder whose config.json does without it.",
        ) from None
    except OSError as error:
        raise _helper_failed(program, key, (error.strerror or str(error)).lower()) from None
    except subprocess.TimeoutExpired:
        raise _helper_failed(program, key, f"no answer in {HELPER_TIMEOUT:g} s") from None
    # Helpers print the reason of a failure to their standard output.
    said = printable((done.stdout.strip() or done.stderr.strip())[:1000])
    if done.returncode != 0:
        if NOT_FOUND in said:
            return None
        raise _helper_failed(program, key, said)
    try:
        answer = json.loads(done.stdout)
        username, password = answer["Username"], answer["Secret"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise _helper_failed(program, key, "its answer is not of the expected form") from None
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


def _wrong(path: Path, problem: str) -> ConfigError:
    return ConfigError(f"{path}: {problem}", "Repair it, or let docker login write it anew.")
