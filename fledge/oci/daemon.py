"""Opens images of a Docker daemon, or of podman's service, over the Docker Engine API."""

from __future__ import annotations

import http.client
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
import urllib3.exceptions

from fledge.errors import ConfigError, CorruptError, FledgeError, HostError, NetworkError
from fledge.host.settings import Settings
from fledge.net.json_document import JsonObject
from fledge.net.transport import error_causes, is_loopback, no_login, system_reason
from fledge.oci import archive, layout
from fledge.oci.image import Image, once
from fledge.oci.manifest import (
    Platform,
    check_platform,
    make_image,
    normalize_platform,
    parse_config,
    parse_digest,
)
from fledge.oci.reference import DEFAULT_TAG, DOCKER_HUB, Name
from fledge.session import Session
from fledge.store.cache import Cache
from fledge.tree.content import Span
from fledge.tree.digest import Digest
from fledge.tree.names import printable

if TYPE_CHECKING:
    from docker.errors import APIError

ANSWER_TIMEOUT = 30
"""Seconds to wait for a byte of any response but an export."""
EXPORT_TIMEOUT = 600
"""Seconds to wait for a byte of an export: dockerd copies the whole image before it sends any."""
SYSTEM_SOCKETS = ("/var/run/docker.sock", "/run/podman/podman.sock")
USER_SOCKETS = ("docker.sock", "podman/podman.sock")
"""The sockets of rootless services, in ``$XDG_RUNTIME_DIR``."""

FAILURES: tuple[tuple[type[Exception], str], ...] = (
    (requests.exceptions.Timeout, "it did not answer in time"),
    (http.client.RemoteDisconnected, "it closed the connection without an answer"),
    (http.client.IncompleteRead, "its answer was cut short"),
    (http.client.HTTPException, "it does not speak HTTP"),
    (KeyError, "it does not speak the API of Docker"),
    (json.JSONDecodeError, "its answer is not JSON"),
    (requests.exceptions.JSONDecodeError, "its answer is not JSON"),
)
"""What happened, by the exception that the Docker client got; the first that fits counts."""

SHA256_DIGITS = 64
IMAGE_ID = re.compile(r"[0-9a-f]{12,64}")
"""The digits of an image's ID, or the beginning of them that docker and podman list."""

ClientOptions = Mapping[str, Any]
"""The arguments of a Docker client: ``base_url``, and ``tls`` if the daemon requires it."""


class NoDaemonImageError(NetworkError):
    """No daemon answers, or none has the image."""


def open_image(name: Name, platform: Platform, session: Session) -> Image:
    """Open the image with that name in the first daemon that has it.

    It is exported when the first layer is needed, or at once if the cache lacks its config.

    Raises `NoDaemonImageError` if no daemon has it, `ConfigError` if it is for another platform
    or the user's Docker settings are invalid, `HostError` if the user may not use the daemon,
    `NetworkError` if the daemon fails, `CorruptError` if the image is damaged.
    """
    problems: list[FledgeError] = []
    for options in _daemons(session.settings):
        try:
            return _open(options, name, platform, session)
        except (NoDaemonImageError, HostError) as error:
            problems.append(error)
    # A daemon that the user may not use is more worth reporting than one without the image.
    for problem in problems:
        if isinstance(problem, HostError):
            raise problem
    if problems:
        message = "; ".join(problem.message for problem in problems)
        raise NoDaemonImageError(message, problems[0].hint) from problems[0]
    raise NoDaemonImageError(
        "no Docker daemon listens on this machine",
        "Start Docker or podman's service, or set DOCKER_HOST.",
    )


def _daemons(settings: Settings) -> list[ClientOptions]:
    """Return the daemon in the user's Docker settings, or else those with a usual socket."""
    # Imported here because the Docker client is slow to import.
    from docker.context import ContextAPI  # noqa: PLC0415
    from docker.utils import kwargs_from_env  # noqa: PLC0415

    try:
        # The Docker client takes an empty environment for the environment of the process.
        environment = settings.environment or {"DOCKER_HOST": ""}
        named: ClientOptions = kwargs_from_env(environment)
        if "base_url" in named:
            return [named]
        name = settings.docker_context
        context = ContextAPI.get_context(name)
        if context is None:
            raise ValueError(f"there is no context {name!r}")
        if context is not ContextAPI.DEFAULT_CONTEXT:
            return [ContextAPI.kwargs_from_context(name, environment)]
    except Exception as error:  # the client raises any exception for a malformed file
        raise ConfigError(
            f"the Docker settings cannot be used: {printable(str(error))}",
            "Check DOCKER_HOST, DOCKER_CONTEXT, DOCKER_CERT_PATH and `docker context ls`.",
        ) from error
    sockets = list(SYSTEM_SOCKETS)
    if runtime := settings.runtime_folder:
        sockets += [f"{runtime}/{socket}" for socket in USER_SOCKETS]
    return [{"base_url": f"unix://{path}"} for path in sockets if os.access(path, os.F_OK)]


def _open(options: ClientOptions, name: Name, platform: Platform, session: Session) -> Image:
    from docker.api.client import APIClient  # noqa: PLC0415
    from docker.errors import NotFound  # noqa: PLC0415

    class Client(APIClient):
        def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
            request.auth = no_login  # a login in ~/.netrc is not for daemons
            return super().prepare_request(request)

        def merge_environment_settings(self, url: Any, *args: Any) -> Any:
            # Else a proxy for all URLs would be asked even for those of sockets.
            settings = super().merge_environment_settings(url, *args)
            local = is_loopback(urlsplit(url).hostname or "")
            return {**settings, "proxies": {}} if local else settings

    uri = f"docker-daemon:{name}"
    where = str(options.get("base_url"))
    with _explained(where):
        client = Client(**options, timeout=ANSWER_TIMEOUT)
        for asked in _daemon_names(name):
            with suppress(NotFound):
                answer = client.inspect_image(asked)  # type: ignore[no-untyped-call]
                break
        else:
            raise NoDaemonImageError(
                f"the Docker daemon at {where} has no image {name}",
                "Pull or build it there, or write docker://NAME to take it from its registry.",
            )
    session.reporter.detail(f"{name} is in the daemon at {where}")
    if asked.startswith("localhost/") and name.host != "localhost":
        session.reporter.note(f"{name} is {asked} of the daemon at {where}")
    inspected = JsonObject(answer, f"{uri} ({where})")
    image_platform = normalize_platform(
        inspected.text("Os", ""), inspected.text("Architecture", ""), inspected.text("Variant", "")
    )
    check_platform(image_platform, platform, uri)
    image_id = inspected.text("Id")

    def export() -> Image:
        with _explained(where):
            client.timeout = EXPORT_TIMEOUT
            pieces = client.get_image(image_id)
            saved = archive.store_archive(pieces, f"{name.repository} from Docker", session)
        return archive.open_saved(archive.index_archive(saved, uri), None, platform)

    exported = once(export)
    config = _cached_config(session.cache, parse_digest(image_id, uri))
    if config is None:
        config = exported().config
        session.cache.store(config)

    def blob(number: int) -> Span:
        return exported().layers[number].blob()

    count = len(parse_config(config, uri).diff_ids)
    return make_image(uri, config, [partial(blob, number) for number in range(count)], platform)


def _daemon_names(name: Name) -> list[str]:
    """Return the names to ask a daemon for, in turn. It accepts a tag or a digest but not both.

    A name without a host may be an image that podman has built, which puts ``localhost/`` before
    it, or the ID of an image: ``sha256:`` and 64 digits, or the first 12 digits or more.
    """
    tag = None if name.digest else name.tag
    names = [str(Name(name.host, name.repository, tag, name.digest))]
    library, _, short = name.repository.partition("/")
    if name.host != DOCKER_HUB or library != "library":
        return names
    names.append(str(Name("localhost", short, tag, name.digest)))
    if short == "sha256" and tag and len(tag) == SHA256_DIGITS and IMAGE_ID.fullmatch(tag):
        names.append(f"sha256:{tag}")
    elif tag == DEFAULT_TAG and IMAGE_ID.fullmatch(short):
        names.append(short)
    return names


def _cached_config(cache: Cache, digest: Digest) -> bytes | None:
    """Return the config with that digest if an earlier build cached it.

    ``digest`` is the image's ID. With containerd's image store that is the digest of the manifest
    or index; then there is no such config.
    """
    found = cache.find(digest)
    if found:
        with suppress(CorruptError):
            raw = layout.read_document(found, "")
            parse_config(raw, "")
            return raw
    return None


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turn an exception of the Docker client into a `FledgeError`; ``where``: the daemon's URL."""
    from docker.errors import APIError, DockerException  # noqa: PLC0415

    try:
        yield
    except APIError as error:
        raise NetworkError(*_refusal(where, error)) from error
    except (
        DockerException,
        requests.RequestException,
        urllib3.exceptions.HTTPError,
        ValueError,  # for an invalid URL or version
    ) as error:
        causes = list(error_causes(error))
        if any(isinstance(cause, PermissionError) for cause in causes):
            raise HostError(
                f"you may not use the Docker daemon at {where}",
                "Join the group that owns the socket (often `docker`), or use rootless Docker or"
                " podman.",
            ) from error
        if refused := next((each for each in causes if isinstance(each, APIError)), None):
            raise NoDaemonImageError(*_refusal(where, refused)) from error
        hint = "Check that it runs, and DOCKER_HOST."
        if where.startswith("ssh:"):
            hint = (
                "fledge does not log in by ssh. Forward the socket, as in `ssh -NL"
                " /tmp/docker.sock:/var/run/docker.sock HOST`, and set"
                " DOCKER_HOST=unix:///tmp/docker.sock."
            )
        raise NoDaemonImageError(
            f"no sound answer from the Docker daemon at {where}: {_reason(causes)}", hint
        ) from error


def _refusal(where: str, error: APIError) -> tuple[str, str]:
    """Return the message and hint for an answer that is an error."""
    said = printable(str(error.explanation or error)).strip()
    hint = "See the daemon's own log."
    if "HTTPS" in said:  # Go's answer to plain HTTP where it speaks TLS
        hint = "Set DOCKER_TLS_VERIFY=1, and DOCKER_CERT_PATH to the folder of its certificates."
    return f"the Docker daemon at {where} refuses: {said}", hint


def _reason(causes: list[Exception]) -> str:
    """Return why there is no sound answer; ``causes`` are in the order of `error_causes`."""
    if reason := system_reason(causes):
        return reason
    for kind, words in FAILURES:
        if any(isinstance(cause, kind) for cause in causes):
            return words
    return printable(str(causes[0]))
