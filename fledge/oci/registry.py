"""Images in a registry, over HTTP (OCI distribution-spec; Docker registry API v2)."""

from __future__ import annotations

import difflib
import ipaddress
import os
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
from fledge.net.fetch import Fetcher
from fledge.net.transport import HttpStatusError, TooLargeError, printable_url
from fledge.oci import credentials
from fledge.oci.document import MAX_SIZE, Document
from fledge.oci.image import Image
from fledge.oci.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    Platform,
    find_manifest,
    make_image,
)
from fledge.oci.reference import DOCKER_HUB, Name
from fledge.tree.content import Span, read_content

DOCKER_HUB_SERVER = "registry-1.docker.io"

INSECURE_VARIABLE = "FLEDGE_INSECURE_REGISTRIES"
"""Environment variable: HOST or HOST:PORT, separated by commas, that may speak plain HTTP."""

ACCEPT = ", ".join([*sorted(INDEX_TYPES | MANIFEST_TYPES), "*/*"])

MAX_CHALLENGE = 4 << 10
"""Characters of a WWW-Authenticate header."""
BEARER = re.compile(r'\bbearer\s+(?:[a-z_]+="[^"]*"[\s,]*)+', re.IGNORECASE)
"""One challenge among those of the header (RFC 6750 section 3)."""
TOKEN = re.compile(r"[\x21-\x7e]+")


class NoManifestError(NetworkError):
    """The registry has no such tag or digest."""


def open_image(name: Name, platform: Platform, fetcher: Fetcher) -> Image:
    """The image of that name for a platform; layers are downloaded when they are asked for.

    Manifest and config stay in the cache, so a name with a digest can be opened offline.
    Raises `NetworkError`, `CorruptError` if the image contradicts itself, `ConfigError` if it
    has nothing for the platform or the user's login cannot be read, `HostError` if a
    credential helper fails.
    """
    if fetcher.offline and not name.sha256:
        raise NetworkError(
            f"{name}: what the tag stands for cannot be looked up offline",
            "Pin it with `fledge lock`, or run without --offline.",
        )
    repository = _Repository.at(name, fetcher)
    read_manifest = partial(repository.document, "manifests", "manifest")
    manifest = find_manifest(repository.named(), platform, str(name), read_manifest)
    config = repository.document("blobs", "config", manifest.config)
    blobs = [
        partial(repository.get, "blobs", f"layer {number} of {len(manifest.layers)}", layer)
        for number, layer in enumerate(manifest.layers, 1)
    ]
    pinned = Name(name.host, name.repository, name.tag, manifest.sha256)
    return make_image(str(pinned), config, blobs, platform, manifest.sha256)


class _Repository(msgspec.Struct, frozen=True):
    """One repository of a registry, as the user's login sees it."""

    name: Name
    url: str
    fetcher: Fetcher
    login: _Login

    @classmethod
    def at(cls, name: Name, fetcher: Fetcher) -> _Repository:
        base = _base_url(name.host, fetcher)
        return cls(name, f"{base}/v2/{name.repository}", fetcher, _Login(name, base, fetcher))

    def named(self) -> bytes:
        """The manifest or index that the name stands for."""
        wanted = f"sha256:{self.name.sha256}" if self.name.sha256 else str(self.name.tag)
        span = self._fetch(f"manifests/{wanted}", "manifest", self.name.sha256, MAX_SIZE)
        return self._read(span, "manifest")

    def document(self, kind: str, label: str, descriptor: Descriptor) -> bytes:
        """Something that is held in memory."""
        if descriptor.size > MAX_SIZE:
            raise self._too_large(label, MAX_SIZE)
        return self._read(self.get(kind, label, descriptor), label)

    def get(self, kind: str, label: str, descriptor: Descriptor) -> Span:
        """What a descriptor names, of the digest and size that it promises.

        A URL that comes with it is ignored: it could be any of the user's network.
        """
        path = f"{kind}/sha256:{descriptor.sha256}"
        span = self._fetch(path, label, descriptor.sha256, descriptor.size)
        if span.size != descriptor.size:
            raise CorruptError(
                f"{self.name}: {label} (sha256:{descriptor.sha256}) has {span.size} bytes,"
                f" but its manifest says {descriptor.size}"
            )
        return span

    def _fetch(self, path: str, label: str, sha256: str | None, limit: int) -> Span:
        label = f"{self.name.repository} {label}"
        try:
            return self.fetcher.fetch(f"{self.url}/{path}", label, sha256, self.login, limit)
        except TooLargeError:
            raise self._too_large(label, limit) from None
        except HttpStatusError as error:
            raise self._explained(error, path) from None

    def _read(self, span: Span, label: str) -> bytes:
        if span.size > MAX_SIZE:
            raise self._too_large(label, MAX_SIZE)
        return b"".join(read_content(span))

    def _too_large(self, label: str, limit: int) -> CorruptError:
        return CorruptError(
            f"{self.name}: {label} has more than the {limit} bytes that it may have"
        )

    def _explained(self, error: HttpStatusError, path: str) -> FledgeError:
        if error.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return self.login.refused()
        if error.status != HTTPStatus.NOT_FOUND or not path.startswith("manifests/"):
            return error
        return NoManifestError(
            f"{self.name.host}/{self.name.repository} has no {path.removeprefix('manifests/')!r}",
            self._suggestion(),
        )

    def _suggestion(self) -> str:
        """What to do about a tag or digest that does not exist."""
        url = f"{self.url}/tags/list?n=1000"
        with suppress(NetworkError, CorruptError):
            try:
                tags = Document(self.fetcher.json(url, self.login), url).texts("tags")
            except HttpStatusError as error:
                if error.status == HTTPStatus.NOT_FOUND:
                    return "Check the name; there is no such repository at all."
                raise
            if close := difflib.get_close_matches(self.name.tag or "", tags):
                return f"Check the tag; there are {', '.join(close)}."
        return "Check the tag or digest."


class _Login:
    """A `transport.Login` for one repository: none, basic (RFC 7617), or bearer tokens
    (distribution/distribution, docs/content/spec/auth/token.md).

    What oras does itself about a challenge has neither time limits nor bounds, and knows no
    $DOCKER_CONFIG: so it only reads the challenge here. A token is renewed when the registry
    refuses the one at hand, not by the clock.
    """

    def __init__(self, name: Name, base: str, fetcher: Fetcher) -> None:
        self._name = name
        self._fetcher = fetcher
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
                return True  # another thread was here first
            if refused is None:
                self._credentials = credentials.find(self._name.host)
            challenge = refusal.headers.get("WWW-Authenticate", "")[:MAX_CHALLENGE]
            if bearer := BEARER.search(challenge):
                self._authorization = f"Bearer {self._token(bearer[0])}"
            elif self._credentials and not refused:
                self._authorization = f"Basic {self._basic(self._credentials)}"
            else:
                return False
            return True

    def refused(self) -> NetworkError:
        """To raise when the registry does not let this login in."""
        host = self._name.host
        who = "without a login"
        if self._credentials:
            who = f"with the login of {self._credentials.username} in {self._credentials.source}"
        return NetworkError(
            f"{host} gives no access to {self._name.repository} {who}",
            f"Check the name; if the image is a private one: docker login"
            f"{'' if host == DOCKER_HUB else ' ' + host}.",
        )

    def _token(self, header: str) -> str:
        # Late, for it takes as long as reading a layer of a thousand files.
        from oras.auth.utils import parse_auth_header  # noqa: PLC0415

        challenge = parse_auth_header(header)
        realm = _split_url(challenge.realm or "")
        # Anything else could be a file of this machine, or give a password away.
        if not realm or realm.scheme not in self._schemes:
            raise NetworkError(
                f"{self._name.host} wants a token from {printable_url(challenge.realm or '')!r},"
                " which is no https URL",
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
            answer = Document(self._fetcher.json(url.geturl(), _Fixed(headers)), where)
        except HttpStatusError as error:
            if error.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                raise self.refused() from None
            raise
        token = answer.text("token", "") or answer.text("access_token", "")
        if not TOKEN.fullmatch(token):
            raise CorruptError(f"{where}: the answer holds no token")
        return token

    @staticmethod
    def _basic(login: credentials.Credentials) -> str:
        from oras.auth.utils import get_basic_auth  # noqa: PLC0415

        return str(get_basic_auth(login.username, login.password))


class _Fixed(msgspec.Struct, frozen=True):
    """A `transport.Login` that is what it is.

    Unlike plain headers it keeps the Fetcher from taking a login out of ~/.netrc, which a
    registry must not be able to send to a URL of its choice.
    """

    own: Mapping[str, str]

    def headers(self) -> Mapping[str, str]:
        return self.own

    def renew(self, refusal: requests.Response) -> bool:
        return False


def _split_url(url: str) -> SplitResult | None:
    try:
        return urlsplit(url)
    except ValueError:
        return None


def _base_url(host: str, fetcher: Fetcher) -> str:
    """Where the API of a registry is: https, unless the host may do without and does."""
    if host == DOCKER_HUB:
        return f"https://{DOCKER_HUB_SERVER}"
    if fetcher.offline or not _may_be_plain(host):
        return f"https://{host}"
    try:
        fetcher.text(f"http://{host}/v2/")
    except HttpStatusError as error:
        # What servers say to plain HTTP on a port for TLS.
        if error.status == HTTPStatus.BAD_REQUEST:
            return f"https://{host}"
    return f"http://{host}"


def _may_be_plain(host: str) -> bool:
    """Whether a registry may go without TLS: on this machine, or because the user says so."""
    bare = urlsplit(f"//{host}").hostname or ""
    insecure = os.environ.get(INSECURE_VARIABLE, "").split(",")
    if bare == "localhost" or not {host, bare}.isdisjoint(entry.strip() for entry in insecure):
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(bare).is_loopback
    return False
