"""Opens images of a Docker daemon, or of podman's service, over the Docker Engine API."""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import SplitResult, quote, urlsplit

import requests
import urllib3.exceptions

from fledge.errors import (
    ConfigError,
    CorruptError,
    FledgeError,
    HostError,
    NetworkError,
    unreadable,
)
from fledge.host import programs
from fledge.host.settings import Settings
from fledge.net import connection
from fledge.net.certificates import Certificates
from fledge.net.exchange import TooLargeError, TransientError, is_loopback
from fledge.net.json_document import MAX_DOCUMENT_SIZE, JsonObject, parse_object
from fledge.net.transport import (
    error_causes,
    no_login,
    read_body,
    refusal_words,
    status_text,
    system_reason,
)
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
from fledge.tree.regular import read_regular

if TYPE_CHECKING:
    from docker.tls import TLSConfig

ANSWER_TIMEOUT = 30
"""Seconds to wait for any answer but an export."""
EXPORT_TIMEOUT = 600
"""Seconds to wait for the beginning of an export: dockerd copies the whole image first."""
SYSTEM_SOCKETS = ("/var/run/docker.sock", "/run/podman/podman.sock")
USER_SOCKETS = ("docker.sock", "podman/podman.sock")
"""The sockets of rootless services, in ``$XDG_RUNTIME_DIR``."""

FAILURES: tuple[tuple[type[Exception], str], ...] = (
    (requests.exceptions.Timeout, "it did not answer in time"),
    (http.client.RemoteDisconnected, "it closed the connection without an answer"),
    (http.client.IncompleteRead, "its answer was cut short"),
    (http.client.HTTPException, "it does not speak HTTP"),
)
"""What happened, by the exception that requests raised; the first that fits counts."""

SHA256_DIGITS = 64
IMAGE_ID = re.compile(r"[0-9a-f]{12,64}")
"""The digits of an image's ID, or the beginning of them that docker and podman list."""

API_VERSION = re.compile("[0-9]{1,3}[.][0-9]{1,3}")


class NoDaemonImageError(NetworkError):
    """No daemon answers, or none has the image."""


class _Address(NamedTuple):
    """Where a daemon listens."""

    url: str
    """As in ``DOCKER_HOST``: unix, tcp, http, https or ssh."""
    tls: TLSConfig | None = None
    """The certificates to use; None for a connection without TLS."""


def open_image(name: Name, platform: Platform, session: Session) -> Image:
    """Open the image with that name in the first daemon that has it.

    It is exported when the first layer is needed, or at once if the cache lacks its config.

    Raises `NoDaemonImageError` if no daemon has it, `ConfigError` if it is for another platform
    or the user's Docker settings are invalid, `HostError` if the user may not use the daemon,
    `NetworkError` if the daemon fails, `CorruptError` if the image is damaged.
    """
    problems: list[FledgeError] = []
    for address in _addresses(session.settings):
        try:
            return _open(address, name, platform, session)
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


def survey(session: Session) -> list[tuple[str, str]]:
    """Ask each daemon that `open_image` would ask whether it answers.

    Returns their URLs, and why one cannot be used; empty: it can. Raises `ConfigError` if the
    user's Docker settings are invalid.
    """
    found = []
    for address in _addresses(session.settings):
        try:
            with _explained(address.url, NoDaemonImageError):
                _Daemon(address, session)
            found.append((address.url, ""))
        except FledgeError as error:
            found.append((address.url, error.message))
    return found


def _addresses(settings: Settings) -> list[_Address]:
    """Return the daemon in the user's Docker settings, or else those with a usual socket."""
    # Imported here because the Docker client is slow to import.
    from docker.context import ContextAPI  # noqa: PLC0415
    from docker.utils import kwargs_from_env  # noqa: PLC0415

    try:
        # The Docker client takes an empty environment for the environment of the process.
        named = kwargs_from_env(settings.environment or {"DOCKER_HOST": ""})
        if "base_url" in named:
            return [_Address(named["base_url"], named.get("tls"))]
        name = settings.docker_context or _current_context(settings)
        context = ContextAPI.get_context(name)
        if context is None:
            raise ValueError(f"there is no context {name!r}")
        if context is not ContextAPI.DEFAULT_CONTEXT:
            return [_Address(context.Host or "", context.TLSConfig)]
    except Exception as error:  # the client raises any exception for a malformed file
        raise ConfigError(
            f"the Docker settings cannot be used: {printable(str(error))}",
            "Check DOCKER_HOST, DOCKER_CONTEXT, DOCKER_CERT_PATH and `docker context ls`.",
        ) from error
    sockets = list(SYSTEM_SOCKETS)
    if runtime := settings.runtime_folder:
        sockets += [f"{runtime}/{socket}" for socket in USER_SOCKETS]
    return [_Address(f"unix://{path}") for path in sockets if os.access(path, os.F_OK)]


def _current_context(settings: Settings) -> str:
    """Return the name of the context that ``docker context use`` has chosen."""
    path = settings.docker_config
    try:
        raw = read_regular(path, MAX_DOCUMENT_SIZE + 1) if path else b"{}"
    except (FileNotFoundError, NotADirectoryError):
        raw = b"{}"
    except OSError as error:
        raise unreadable(path or Path(), error) from error
    return parse_object(raw, str(path)).text("currentContext", "") or "default"


class _Refusal(Exception):
    """The daemon answers with a status that is not a success."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words or status_text(status))
        self.status = status


class _Daemon:
    """Sends requests to one daemon. Nothing that it answers is trusted."""

    def __init__(self, address: _Address, session: Session) -> None:
        """Raises `NoDaemonImageError` for an address over the network if the session is offline,
        any exception for one that is not valid.
        """
        from docker.utils import parse_host  # noqa: PLC0415

        parts = urlsplit(str(parse_host(address.url, tls=bool(address.tls))))
        if session.offline and parts.scheme != "http+unix":
            raise NoDaemonImageError(
                f"the Docker daemon at {address.url} is not asked offline",
                "Run without --offline, or pin the image with `fledge lock` and fetch it first.",
            )
        self._pace = session.pace
        self._requests = requests.Session()
        self._requests.headers["Accept-Encoding"] = "identity"
        self._base = "http://localhost"
        if parts.scheme == "http+unix":
            adapter = connection.SocketAdapter(partial(_connect, parts.path))
            self._requests.mount("http://", adapter)
        elif parts.scheme == "ssh":
            ssh = programs.find("ssh", session.settings)
            dial = partial(_dial, ssh, parts, session.settings.environment)
            self._requests.mount("http://", connection.SocketAdapter(dial))
        elif parts.scheme in ("http", "https"):
            watched = connection.WatchedAdapter(Certificates(None, ()))
            self._requests.mount(f"{parts.scheme}://", watched)
            self._base = parts.geturl()
        else:
            raise ValueError(f"{parts.scheme} is for other systems")
        if address.tls:
            address.tls.configure_client(self._requests)  # type: ignore[arg-type]  # any session
        version = self.document("/version").text("ApiVersion")
        if not API_VERSION.fullmatch(version):
            raise CorruptError(f"/version: {version} is not a version")
        self._base += f"/v{version}"

    def document(self, path: str) -> JsonObject:
        """Return a JSON object. Raises as `stream`, or `CorruptError`."""
        body = bytearray()
        for piece in self.stream(path, ANSWER_TIMEOUT, MAX_DOCUMENT_SIZE):
            body += piece
        return parse_object(bytes(body), path)

    def stream(self, path: str, seconds: float, limit: int) -> Iterator[bytes]:
        """Yield the body of an answer, of at most ``limit`` bytes.

        ``seconds`` is how long to wait for the head, and over how long its speed is measured then.
        Raises `_Refusal`, and the errors of requests and of `read_body`.
        """
        url = self._base + quote(path, safe="/:")
        request = self._requests.prepare_request(requests.Request("GET", url, auth=no_login))
        verify = self._requests.verify
        settings = self._requests.merge_environment_settings(url, {}, True, verify, None)
        # Else a proxy for all URLs would be asked even for those of sockets.
        if is_loopback(urlsplit(url).hostname or ""):
            settings["proxies"] = {}
        # Not the session's own method, which would follow a redirect to wherever it leads.
        with self._requests.get_adapter(url).send(
            request,
            timeout=(connection.CONNECT_TIMEOUT, seconds),
            **settings,  # type: ignore[arg-type]  # in the stubs, verify may be None
        ) as response:
            if response.status_code != HTTPStatus.OK:
                said = refusal_words(response, path, self._pace)
                raise _Refusal(response.status_code, said)
            total = response.raw.length_remaining
            yield from read_body(response, path, 0, total, limit, self._pace, seconds)


def _connect(path: str) -> socket.socket:
    """Connect to a socket of this machine."""
    opened = socket.socket(socket.AF_UNIX)
    try:
        opened.settimeout(connection.CONNECT_TIMEOUT)
        opened.connect(path)
    except BaseException:
        opened.close()
        raise
    return opened


def _dial(ssh: str, url: SplitResult, environment: Mapping[str, str]) -> socket.socket:
    """Connect to the daemon of another machine as docker does, by its own program there.

    ssh ends when the socket is closed.
    """
    user = ("-l", url.username) if url.username else ()
    port = ("-p", str(url.port)) if url.port else ()
    command = [ssh, *user, *port, "--", url.hostname or "", "docker system dial-stdio"]
    ours, theirs = socket.socketpair()
    with theirs:
        # ssh needs the user's environment to find the agent with the keys.
        subprocess.Popen(
            command,
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.DEVNULL,
            env=environment,
        )
    return ours


def _open(address: _Address, name: Name, platform: Platform, session: Session) -> Image:
    uri = f"docker-daemon:{name}"
    where = address.url
    with _explained(where, NoDaemonImageError):
        daemon = _Daemon(address, session)
    with _explained(where):
        for asked in _daemon_names(name):
            try:
                inspected = daemon.document(f"/images/{asked}/json")
                break
            except _Refusal as refusal:
                if refusal.status != HTTPStatus.NOT_FOUND:
                    raise
        else:
            raise NoDaemonImageError(
                f"the Docker daemon at {where} has no image {name}",
                "Pull or build it there, or write docker://NAME to take it from its registry.",
            )
    session.reporter.detail(f"{name} is in the daemon at {where}")
    if asked.startswith("localhost/") and name.host != "localhost":
        session.reporter.note(f"{name} is {asked} of the daemon at {where}")
    inspected.where = f"{uri} ({where})"
    image_platform = normalize_platform(
        inspected.text("Os", ""), inspected.text("Architecture", ""), inspected.text("Variant", "")
    )
    check_platform(image_platform, platform, uri)
    image_id = inspected.text("Id")
    digest = parse_digest(image_id, uri)
    # That of the files: the headers of the tar come to a few percent more.
    size = inspected.natural("Size") if inspected.has("Size") else None

    def export() -> Image:
        with _explained(where):
            path = f"/images/{image_id}/get"
            pieces = daemon.stream(path, EXPORT_TIMEOUT, archive.MAX_ARCHIVE_SIZE)
            label = f"{name.repository} from Docker"
            saved = archive.store_archive(pieces, label, session, size)
        return archive.open_saved(archive.index_archive(saved, uri), None, platform)

    exported = once(export)
    config = _cached_config(session.cache, digest)
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
def _explained(where: str, refused: type[NetworkError] = NetworkError) -> Iterator[None]:
    """Turn what goes wrong in the block into a `FledgeError`.

    ``where`` is the daemon's URL, ``refused`` the error if it refuses a request.
    """
    from docker.errors import DockerException  # noqa: PLC0415

    def unsound(reason: str, hint: str = "Check that it runs, and DOCKER_HOST.") -> FledgeError:
        return NoDaemonImageError(
            f"no sound answer from the Docker daemon at {where}: {printable(reason)}", hint
        )

    try:
        yield
    except _Refusal as error:
        hint = "See the daemon's own log."
        if "HTTPS" in str(error):  # Go's answer to plain HTTP where it speaks TLS
            hint = "Set DOCKER_TLS_VERIFY=1, and DOCKER_CERT_PATH to the folder of certificates."
        raise refused(f"the Docker daemon at {where} refuses: {error}", hint) from error
    except TransientError as error:
        raise unsound(error.error.message, error.error.hint) from error
    except (CorruptError, TooLargeError) as error:
        raise unsound(error.message) from error
    except (
        DockerException,
        requests.RequestException,
        urllib3.exceptions.HTTPError,
        ValueError,  # for an invalid URL
    ) as error:
        causes = list(error_causes(error))
        if any(isinstance(cause, PermissionError) for cause in causes):
            raise HostError(
                f"you may not use the Docker daemon at {where}",
                "Join the group that owns the socket (often `docker`), or use rootless Docker or"
                " podman.",
            ) from error
        raise unsound(_reason(causes)) from error


def _reason(causes: list[Exception]) -> str:
    """Return why there is no sound answer; ``causes`` are in the order of `error_causes`."""
    if reason := system_reason(causes):
        return reason
    words = (words for kind, words in FAILURES if any(isinstance(each, kind) for each in causes))
    return next(words, str(causes[0]))
