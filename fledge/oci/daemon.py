"""Images of a Docker daemon, or of podman's service, over the Docker Engine API."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import requests
import urllib3.exceptions

from fledge.errors import ConfigError, CorruptError, FledgeError, HostError, NetworkError
from fledge.oci import archive, layout
from fledge.oci.document import Document, parse_digest
from fledge.oci.image import Image, once
from fledge.oci.manifest import Platform, make_image, parse_config, require_platform
from fledge.oci.reference import Name
from fledge.report import Reporter
from fledge.store.cache import Cache
from fledge.tree.content import Span
from fledge.tree.names import printable

ANSWER_TIMEOUT = 30
EXPORT_TIMEOUT = 600
"""Seconds without a byte; dockerd copies the whole image before it sends the first one."""
SYSTEM_SOCKETS = ("/var/run/docker.sock", "/run/podman/podman.sock")
USER_SOCKETS = ("docker.sock", "podman/podman.sock")
"""Of rootless services, in ``$XDG_RUNTIME_DIR``."""

Host = Mapping[str, Any]
"""How to reach a daemon: its ``base_url``, and ``tls`` if it wants that."""


class NotThereError(NetworkError):
    """No daemon answers, or none has the image."""


def open_image(name: Name, platform: Platform, cache: Cache, reporter: Reporter) -> Image:
    """The image of that name in the first daemon that has it.

    It is exported when the first layer is asked for, or at once if the cache lacks its config.
    Raises `NotThereError` if no daemon has it, `ConfigError` if it is for another platform,
    `HostError` if a daemon may not be asked, `NetworkError` if one breaks off, and
    `CorruptError` if it sends no sound image.
    """
    problems: list[FledgeError] = []
    for host in _hosts():
        try:
            return _open(host, name, platform, cache, reporter)
        except (NotThereError, HostError) as error:
            problems.append(error)
    if not problems:
        raise NotThereError(
            "no Docker daemon listens on this machine",
            "Start Docker or podman's service, or set DOCKER_HOST.",
        )
    # One that may not be asked says more than one that has nothing.
    raise next((each for each in problems if isinstance(each, HostError)), problems[0])


def find_image(name: Name, platform: Platform, cache: Cache, reporter: Reporter) -> Image | None:
    """As `open_image`, but None where a registry may help.

    That is if no daemon has the image, may be asked or has it for that platform.
    """
    try:
        return open_image(name, platform, cache, reporter)
    except NotThereError:
        return None
    except (ConfigError, HostError) as error:
        reporter.note(f"no image from a Docker daemon: {error.message}")
        return None


def _hosts() -> list[Host]:
    """What the user's settings name, or else the usual sockets as far as they exist."""
    # Late, for it takes 0.1 s.
    from docker.context import ContextAPI  # noqa: PLC0415
    from docker.utils import kwargs_from_env  # noqa: PLC0415

    try:
        settings: Host = kwargs_from_env()
        if "base_url" in settings:
            return [settings]
        name = os.environ.get("DOCKER_CONTEXT")
        context = ContextAPI.get_context(name)
        if context is None:
            raise ValueError(f"there is no context {name!r}")
        if context is not ContextAPI.DEFAULT_CONTEXT:
            return [ContextAPI.kwargs_from_context(name)]
    except Exception as error:  # what the client raises for a malformed file is no narrower
        raise ConfigError(
            f"the Docker settings cannot be used: {printable(str(error))}",
            "Check DOCKER_HOST, DOCKER_CONTEXT, DOCKER_CERT_PATH and `docker context ls`.",
        ) from error
    sockets = list(SYSTEM_SOCKETS)
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        sockets += [f"{runtime}/{socket}" for socket in USER_SOCKETS]
    return [{"base_url": f"unix://{path}"} for path in sockets if os.access(path, os.F_OK)]


def _open(host: Host, name: Name, platform: Platform, cache: Cache, reporter: Reporter) -> Image:
    from docker.api.client import APIClient  # noqa: PLC0415
    from docker.errors import NotFound  # noqa: PLC0415

    uri = f"docker-daemon:{name}"
    where = str(host.get("base_url"))
    with _explained(where):
        client = APIClient(**host, timeout=ANSWER_TIMEOUT)
        try:
            answer = client.inspect_image(_daemon_name(name))  # type: ignore[no-untyped-call]
        except NotFound:
            raise NotThereError(
                f"the Docker daemon at {where} has no image {name}",
                "Pull or build it there, or write docker://NAME to take it from its registry.",
            ) from None
    inspected = Document(answer, f"{uri} ({where})")
    its = Platform(
        inspected.text("Os"), inspected.text("Architecture"), inspected.text("Variant", "")
    )
    require_platform(platform, its, uri)
    identity = inspected.text("Id")

    def export() -> Image:
        with _explained(where):
            client.timeout = EXPORT_TIMEOUT
            pieces = client.get_image(identity)
            saved = archive.store(pieces, f"{name.repository} from Docker", cache, reporter)
        return archive.open_saved(archive.read_files(saved, uri), None, platform)

    exported = once(export)
    config = _known_config(cache, parse_digest(identity, uri))
    if config is None:
        config = exported().config
        cache.store(config)

    def blob(number: int) -> Span:
        return exported().layers[number].blob()

    count = len(parse_config(config, uri).diff_ids)
    return make_image(uri, config, [partial(blob, number) for number in range(count)], platform)


def _daemon_name(name: Name) -> str:
    """A daemon takes a tag or a digest; the digest decides."""
    return str(Name(name.host, name.repository, None if name.sha256 else name.tag, name.sha256))


def _known_config(cache: Cache, sha256: str) -> bytes | None:
    """The config that an earlier build kept, if an image's ID is its digest.

    With containerd's image store it is that of the manifest or index.
    """
    found = cache.find(sha256)
    if found:
        with suppress(CorruptError):
            raw = layout.read_document(found, "")
            parse_config(raw, "")
            return raw
    return None


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turn what the client raises into a `FledgeError`; ``where`` is the daemon's URL."""
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
        ValueError,  # for a URL or version that cannot be
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
        raise NotThereError(
            f"no sound answer from the Docker daemon at {where}: {printable(str(error))}",
            "Check that it runs, and DOCKER_HOST.",
        ) from error
