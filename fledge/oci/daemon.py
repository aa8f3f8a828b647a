"""Opens images of a Docker daemon, or of podman's service, over the Docker Engine API."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import requests
import urllib3.exceptions

from fledge.errors import ConfigError, CorruptError, FledgeError, HostError, NetworkError
from fledge.host.settings import Settings
from fledge.net.json_document import JsonObject
from fledge.oci import archive, layout
from fledge.oci.image import Image, once
from fledge.oci.manifest import Platform, check_platform, make_image, parse_config, parse_digest
from fledge.oci.reference import Name
from fledge.session import Session
from fledge.store.cache import Cache
from fledge.tree.content import Span
from fledge.tree.digest import Digest
from fledge.tree.names import printable

ANSWER_TIMEOUT = 30
"""Seconds to wait for a byte of any response but an export."""
EXPORT_TIMEOUT = 600
"""Seconds to wait for a byte of an export: dockerd copies the whole image before it sends any."""
SYSTEM_SOCKETS = ("/var/run/docker.sock", "/run/podman/podman.sock")
USER_SOCKETS = ("docker.sock", "podman/podman.sock")
"""The sockets of rootless services, in ``$XDG_RUNTIME_DIR``."""

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
    if not problems:
        raise NoDaemonImageError(
            "no Docker daemon listens on this machine",
            "Start Docker or podman's service, or set DOCKER_HOST.",
        )
    # A daemon that the user may not use is more worth reporting than one without the image.
    raise next((each for each in problems if isinstance(each, HostError)), problems[0])


def find_image(name: Name, platform: Platform, session: Session) -> Image | None:
    """Open an image as `open_image` does, or return None if its registry may have it.

    That is the case if no daemon has the image for that platform, or the user may not use the
    daemon.
    """
    try:
        return open_image(name, platform, session)
    except NoDaemonImageError:
        return None
    except (ConfigError, HostError) as error:
        session.reporter.note(f"no image from a Docker daemon: {error.message}")
        return None


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

    uri = f"docker-daemon:{name}"
    where = str(options.get("base_url"))
    with _explained(where):
        client = APIClient(**options, timeout=ANSWER_TIMEOUT)
        try:
            answer = client.inspect_image(_daemon_name(name))  # type: ignore[no-untyped-call]
        except NotFound as error:
            raise NoDaemonImageError(
                f"the Docker daemon at {where} has no image {name}",
                "Pull or build it there, or write docker://NAME to take it from its registry.",
            ) from error
    session.reporter.detail(f"{name} is in the daemon at {where}")
    inspected = JsonObject(answer, f"{uri} ({where})")
    image_platform = Platform(
        inspected.text("Os"), inspected.text("Architecture"), inspected.text("Variant", "")
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


def _daemon_name(name: Name) -> str:
    """Format a name for a daemon, which accepts a tag or a digest but not both."""
    return str(Name(name.host, name.repository, None if name.digest else name.tag, name.digest))


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
        raise NetworkError(
            f"the Docker daemon at {where} refuses: {printable(str(error.explanation or error))}",
            "See the daemon's own log.",
        ) from error
    except (
        DockerException,
        requests.RequestException,
        urllib3.exceptions.HTTPError,
        ValueError,  # for an invalid URL or version
    ) as error:
        cause: BaseException | None = error
        while cause and not isinstance(cause, PermissionError):
            cause = cause.__cause__ or cause.__context__
        if cause:
            raise HostError(
                f"you may not use the Docker daemon at {where}",
                "Join the group that owns the socket (often `docker`), or use rootless Docker or"
                " podman.",
            ) from error
        raise NoDaemonImageError(
            f"no sound answer from the Docker daemon at {where}: {printable(str(error))}",
            "Check that it runs, and DOCKER_HOST.",
        ) from error
