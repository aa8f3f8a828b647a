"""Opens images in a registry, over HTTP (OCI distribution-spec; Docker registry API v2)."""

from __future__ import annotations

import difflib
import ipaddress
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from urllib.parse import SplitResult, urlencode, urlsplit

import msgspec
import requests

from fledge.errors import CorruptError, FledgeError, NetworkError
from fledge.host.settings import Settings
from fledge.net.fetch import Fetcher
from fledge.net.json_document import MAX_DOCUMENT_SIZE, JsonObject
from fledge.net.transport import HttpStatusError, TooLargeError, printable_url
from fledge.oci import credentials
from fledge.oci.image import Image
from fledge.oci.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    Platform,
    make_image,
    resolve_manifest,
)
from fledge.oci.reference import DOCKER_HUB, Name
from fledge.session import Session
from fledge.tree.content import Span, read_content
from fledge.tree.digest import Digest

DOCKER_HUB_SERVER = "registry-1.docker.io"

ACCEPT = ", ".join([*sorted(INDEX_TYPES | MANIFEST_TYPES), "*/*"])

MAX_CHALLENGE = 4 << 10
"""Maximum characters of a WWW-Authenticate header that are parsed."""
BEARER = re.compile(r'\bbearer\s+(?:[a-z_]+="[^"]*"[\s,]*)+', re.IGNORECASE)
"""The Bearer challenge in a WWW-Authenticate header (RFC 6750 section 3)."""
TOKEN = re.compile(r"[\x21-\x7e]+")


class NoManifestError(NetworkError):
    """The registry has no such tag or digest."""


def open_image(name: Name, platform: Platform, session: Session) -> Image:
    """Open the image with that name for a platform. Layers are downloaded when they are needed.

    Manifest and config stay in the cache, so a name with a digest can be opened offline.

    Raises `NetworkError` if the registry does not deliver, `CorruptError` if the image is
    damaged, `ConfigError` if it has no image for the platform or the user's login cannot be read,
    `HostError` if a credential helper fails.
    """
    if session.offline and not name.digest:
        raise NetworkError(
            f"{name}: the tag cannot be looked up offline",
            "Pin it with `fledge lock`, or run without --offline.",
        )
    repository = _Repository.open(name, session)
    read_manifest = partial(repository.read_document, "manifests", "manifest")
    raw = repository.read_named_manifest()
    manifest = resolve_manifest(raw, platform, str(name), read_manifest)
    config = repository.read_document("blobs", "config", manifest.config)
    blobs = [
        partial(repository.fetch, "blobs", f"layer {number} of {len(manifest.layers)}", layer)
        for number, layer in enumerate(manifest.layers, 1)
    ]
    pinned = Name(name.host, name.repository, name.tag, manifest.digest)
    sizes = [layer.size for layer in manifest.layers]
    return make_image(str(pinned), config, blobs, platform, manifest.digest, sizes)


class _Repository(msgspec.Struct, frozen=True):
    """A repository of a registry, with the user's login."""

    name: Name
    url: str
    fetcher: Fetcher
    login: _Login

    @classmethod
    def open(cls, name: Name, session: Session) -> _Repository:
        """Find out the registry's URL. Raises `NetworkError`."""
        base = _base_url(name.host, session)
        login = _Login(name, base, session)
        return cls(name, f"{base}/v2/{name.repository}", session.fetcher, login)

    def read_named_manifest(self) -> bytes:
        """Read the manifest or index that the name stands for."""
        wanted = str(self.name.digest or self.name.tag)
        path = f"manifests/{wanted}"
        span = self._fetch(path, "manifest", self.name.digest, MAX_DOCUMENT_SIZE)
        return self._read(span, "manifest")

    def read_document(self, kind: str, label: str, descriptor: Descriptor) -> bytes:
        """Read a document into memory.

        ``kind`` is ``manifests`` or ``blobs``; ``label`` names the document in messages.
        """
        if descriptor.size > MAX_DOCUMENT_SIZE:
            raise self._too_large(label, MAX_DOCUMENT_SIZE)
        return self._read(self.fetch(kind, label, descriptor), label)

    def fetch(self, kind: str, label: str, descriptor: Descriptor) -> Span:
        """Fetch a blob into the cache and check its digest and size against its descriptor.

        The descriptor's ``urls`` are ignored: they could name any host in the user's network.
        """
        path = f"{kind}/{descriptor.digest}"
        span = self._fetch(path, label, descriptor.digest, descriptor.size)
        if span.size != descriptor.size:
            raise CorruptError(
                f"{self.name}: {label} ({descriptor.digest}) has {span.size} bytes,"
                f" but its manifest says {descriptor.size}"
            )
        return span

    def _fetch(self, path: str, label: str, digest: Digest | None, limit: int) -> Span:
        label = f"{self.name.repository} {label}"
        try:
            return self.fetcher.fetch(f"{self.url}/{path}", label, digest, self.login, limit)
        except TooLargeError as error:
            raise self._too_large(label, limit) from error
        except HttpStatusError as error:
            raise self._explain(error, path) from error

    def _read(self, span: Span, label: str) -> bytes:
        if span.size > MAX_DOCUMENT_SIZE:
            raise self._too_large(label, MAX_DOCUMENT_SIZE)
        return b"".join(read_content(span))

    def _too_large(self, label: str, limit: int) -> CorruptError:
        return CorruptError(f"{self.name}: {label} has more than the {limit} bytes allowed")

    def _explain(self, error: HttpStatusError, path: str) -> FledgeError:
        """Return the error to raise in place of an HTTP status."""
        if error.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return self.login.refused()
        if error.status != HTTPStatus.NOT_FOUND or not path.startswith("manifests/"):
            return error
        return NoManifestError(
            f"{self.name.host}/{self.name.repository} has no {path.removeprefix('manifests/')!r}",
            self._suggestion(),
        )

    def _suggestion(self) -> str:
        """Return the hint for a tag or digest that does not exist."""
        url = f"{self.url}/tags/list?n=1000"
        with suppress(NetworkError, CorruptError):
            try:
                tags = JsonObject(self.fetcher.json(url, self.login), url).texts("tags")
            except HttpStatusError as error:
                if error.status == HTTPStatus.NOT_FOUND:
                    return "Check the name; there is no such repository."
                raise
            if close := difflib.get_close_matches(self.name.tag or "", tags):
                return f"Check the tag; there are {', '.join(close)}."
        return "Check the tag or digest."


class _Login:
    """A `transport.Login` for one repository: anonymous, Basic (RFC 7617), or Bearer tokens
    (distribution/distribution, docs/content/spec/auth/token.md).

    oras only parses the challenge, because its own client has no limits of time or size and
    ignores $DOCKER_CONFIG. A token is renewed when the registry refuses it, not when it expires.
    """

    def __init__(self, name: Name, base: str, session: Session) -> None:
        self._name = name
        self._session = session
        self._schemes = {"https", urlsplit(base).scheme}
        self._lock = threading.Lock()
        self._credentials: credentials.Credentials | None = None
        self._authorization: str | None = None

    def headers(self) -> Mapping[str, str]:
        authorization = self._authorization
        return {
            "Accept": ACCEPT,
            **({"Authorization": authorization} if authorization else {}),
        }

    def renew(self, refusal: requests.Response) -> bool:
        with self._lock:
            refused = refusal.request.headers.get("Authorization")
            if refused != self._authorization:
                return True  # another thread has renewed it
            if refused is None:
                self._credentials = credentials.find(self._name.host, self._session.settings)
            challenge = refusal.headers.get("WWW-Authenticate", "")[:MAX_CHALLENGE]
            if bearer := BEARER.search(challenge):
                self._authorization = f"Bearer {self._token(bearer[0])}"
            elif self._credentials and not refused:
                self._authorization = f"Basic {self._basic(self._credentials)}"
            else:
                return False
            return True

    def refused(self) -> NetworkError:
        """Return the error to raise when the registry denies access."""
        host = self._name.host
        who = "without a login"
        if self._credentials:
            who = f"with the login of {self._credentials.username} in {self._credentials.source}"
        return NetworkError(
            f"{host} denies access to {self._name.repository} {who}",
            f"Check the name; if the image is private, run docker login"
            f"{'' if host == DOCKER_HUB else ' ' + host}.",
        )

    def _token(self, header: str) -> str:
        # Imported here because oras is slow to import.
        from oras.auth.utils import parse_auth_header  # noqa: PLC0415

        challenge = parse_auth_header(header)
        realm = _split_url(challenge.realm or "")
        # Any other URL could name a file of this machine, or reveal a password.
        if not realm or realm.scheme not in self._schemes:
            raise NetworkError(
                f"{self._name.host} wants a token from {printable_url(challenge.realm or '')!r},"
                " which is not an https URL",
                "Do not trust that registry.",
            )
        query = {"scope": challenge.scope or f"repository:{self._name.repository}:pull"}
        if challenge.service:
            query = {"service": challenge.service, **query}
        url = realm._replace(query="&".join(filter(None, [realm.query, urlencode(query)])))
        login = self._credentials
        headers = {"Authorization": f"Basic {self._basic(login)}"} if login else {}
        where = printable_url(url.geturl())
        try:
            response = self._session.fetcher.json(url.geturl(), _FixedHeaders(headers))
        except HttpStatusError as error:
            if error.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                raise self.refused() from error
            raise
        answer = JsonObject(response, where)
        token = answer.text("token", "") or answer.text("access_token", "")
        if not TOKEN.fullmatch(token):
            raise CorruptError(f"{where}: the answer contains no token")
        return token

    @staticmethod
    def _basic(login: credentials.Credentials) -> str:
        from oras.auth.utils import get_basic_auth  # noqa: PLC0415

        return str(get_basic_auth(login.username, login.password))


class _FixedHeaders(msgspec.Struct, frozen=True):
    """A `transport.Login` that always returns the same headers.

    Unlike plain headers it keeps the `Fetcher` from reading ~/.netrc: a registry must not be able
    to send the user's logins to a URL of its choice.
    """

    fixed: Mapping[str, str]

    def headers(self) -> Mapping[str, str]:
        return self.fixed

    def renew(self, refusal: requests.Response) -> bool:
        return False


def _split_url(url: str) -> SplitResult | None:
    try:
        return urlsplit(url)
    except ValueError:
        return None


def _base_url(host: str, session: Session) -> str:
    """Return the base URL of a registry: https, or http if that is allowed and the host uses it."""
    if host == DOCKER_HUB:
        return f"https://{DOCKER_HUB_SERVER}"
    if session.offline or not _allows_http(host, session.settings):
        return f"https://{host}"
    try:
        session.fetcher.text(f"http://{host}/v2/")
    except HttpStatusError as error:
        # The answer of servers to plain HTTP on a port for TLS.
        if error.status == HTTPStatus.BAD_REQUEST:
            return f"https://{host}"
    return f"http://{host}"


def _allows_http(host: str, settings: Settings) -> bool:
    """Return whether a registry may be used without TLS: it is local, or the user allows it."""
    bare = urlsplit(f"//{host}").hostname or ""
    if bare == "localhost" or not {host, bare}.isdisjoint(settings.insecure_registries):
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(bare).is_loopback
    return False
