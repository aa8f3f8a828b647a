"""Opens images in a registry, over HTTP (OCI distribution-spec; Docker registry API v2)."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

import msgspec
import requests

from fledge.errors import ConfigError, CorruptError, FledgeError, NetworkError, OfflineError
from fledge.host.settings import Settings
from fledge.net.fetch import Fetcher
from fledge.net.json_document import MAX_DOCUMENT_SIZE, JsonObject
from fledge.net.transport import (
    CertificateError,
    HttpStatusError,
    TooLargeError,
    is_loopback,
    printable_url,
)
from fledge.oci import credentials
from fledge.oci.challenges import Challenge, parse_challenges
from fledge.oci.image import Image
from fledge.oci.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    Platform,
    make_image,
    resolve_manifest,
)
from fledge.oci.reference import DOCKER_HUB, Name, RegistryReference, parse
from fledge.session import Session
from fledge.tree.content import Span, read_content
from fledge.tree.digest import Digest
from fledge.tree.names import printable, suggestion

T = TypeVar("T")
Parameters = ParamSpec("Parameters")

DOCKER_HUB_SERVER = "registry-1.docker.io"

ACCEPT = ", ".join([*sorted(INDEX_TYPES | MANIFEST_TYPES), "*/*"])

NOT_PLAIN = {301, 302, 303, 307, 308, HTTPStatus.BAD_REQUEST}
"""The statuses with which servers answer plain HTTP where they want TLS."""
FOREIGN = re.compile(r"\.foreign\.|\.nondistributable\.")
"""In the media type of layers that registries need not have (Docker manifest v2 schema 2; OCI
image-spec, layer.md)."""
PULLED = re.compile(r"/v2/(.+)/(?:manifests|blobs)/[^/]+")
"""The path of a URL that a pull requests, with the repository."""
TOKEN = re.compile(r"[\x21-\x7e]+")


class NoManifestError(NetworkError):
    """The registry has no such tag or digest."""


def open_image(name: Name, platform: Platform, session: Session) -> Image:
    """Open the image with that name for a platform. Layers are downloaded when they are needed.

    Manifest and config stay in the cache, so a name with a digest can be opened offline.

    The user's mirrors of the registry are asked before it.

    Raises `NetworkError` if the registry does not deliver, `CorruptError` if the image is
    damaged, `ConfigError` if it has no image for the platform. If the registry denies access and a
    login could not be read, raises that error: `ConfigError` for a file, `HostError` for a helper.
    """
    if session.offline and not name.digest:
        raise OfflineError(
            f"{name}: the tag cannot be looked up offline",
            "Pin it with `fledge lock`, or run without --offline.",
        )
    places = _Places(name, session)

    def read_manifest(descriptor: Descriptor) -> bytes:
        return places.ask(_Repository.read_document, "manifests", "manifest", descriptor)

    raw = places.ask(_Repository.read_named_manifest)
    manifest = resolve_manifest(raw, platform, str(name), read_manifest)
    config = places.ask(_Repository.read_document, "blobs", "config", manifest.config)
    count = len(manifest.layers)
    blobs = [
        partial(places.ask, _Repository.fetch, "blobs", f"layer {number} of {count}", layer)
        for number, layer in enumerate(manifest.layers, 1)
    ]
    pinned = Name(name.host, name.repository, name.tag, manifest.digest)
    sizes = [layer.size for layer in manifest.layers]
    return make_image(
        str(pinned), config, blobs, platform, manifest.digest, manifest.platform, sizes
    )


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
        try:
            span = self._fetch(path, label, descriptor.digest, descriptor.size, descriptor.size)
        except HttpStatusError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                raise self._missing(label, descriptor) from error
            raise
        if span.size != descriptor.size:
            raise CorruptError(
                f"{self.name}: {label} ({descriptor.digest}) has {span.size} bytes,"
                f" but its manifest says {descriptor.size}"
            )
        return span

    def _fetch(
        self, path: str, label: str, digest: Digest | None, limit: int, size: int | None = None
    ) -> Span:
        label = f"{self.name.repository} {label}"
        try:
            return self.fetcher.fetch(f"{self.url}/{path}", label, digest, self.login, limit, size)
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
            return self.login.refused(error)
        if error.status != HTTPStatus.NOT_FOUND or not path.startswith("manifests/"):
            return error
        return NoManifestError(
            f"{self.name.host}/{self.name.repository} has no {path.removeprefix('manifests/')!r}",
            self._suggestion(),
        )

    def _missing(self, label: str, descriptor: Descriptor) -> NetworkError:
        """Return the error for a blob that the manifest lists but the registry does not have."""
        message = f"{self.name}: the registry does not have {label} ({descriptor.digest})"
        if FOREIGN.search(descriptor.media_type):
            return NetworkError(
                f"{message}, which is a foreign layer: its publisher distributes it elsewhere",
                "Pull the image with docker, and write docker-daemon:NAME; fledge asks no server"
                " that only the manifest names.",
            )
        return NetworkError(message, "The image is incomplete there: push it again.")

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
            if not self.name.digest:
                return suggestion(self.name.tag or "", tags) or "It has no tags."
        return "Check the tag or digest."


class _Places:
    """The places that have an image, asked in turn: the mirrors of its registry, then the registry.

    A mirror that fails once is not asked again. Threads may share one.
    """

    def __init__(self, name: Name, session: Session) -> None:
        self._session = session
        # Nobody is asked offline, and the cache does not care who would have been.
        mirrors = [] if session.offline else _mirrors(name, session.settings)
        self._names = [*mirrors, name]
        self._lock = threading.Lock()
        self._opened: dict[Name, _Repository] = {}

    def ask(
        self,
        request: Callable[Concatenate[_Repository, Parameters], T],
        *args: Parameters.args,
        **options: Parameters.kwargs,
    ) -> T:
        """Return what ``request`` returns of the first repository for which it does not fail."""
        while True:
            with self._lock:
                name = self._names[0]
                last = len(self._names) == 1
            try:
                return request(self._repository(name), *args, **options)
            except FledgeError as error:
                if last:
                    raise
                with self._lock:
                    if self._names[0] == name:
                        del self._names[0]
                self._session.reporter.note(f"{error.message}; asking {self._names[0].host}")

    def _repository(self, name: Name) -> _Repository:
        with self._lock:
            if name not in self._opened:
                self._opened[name] = _Repository.open(name, self._session)
            return self._opened[name]


def _mirrors(name: Name, settings: Settings) -> list[Name]:
    """Return the names of an image in the mirrors that the user has chosen for its registry."""
    mirrors = []
    for mirror in settings.registry_mirrors.get(name.host, ()):
        reference = parse(f"docker://{mirror}/{name.repository}", Path())
        found = reference.name if isinstance(reference, RegistryReference) else None
        if not found or found.host == DOCKER_HUB != mirror.partition("/")[0]:
            raise ConfigError(
                f"FLEDGE_REGISTRY_MIRRORS: {mirror!r} does not begin with a host",
                "Write HOST or HOST/PATH; a host has a dot or a port.",
            )
        mirrors.append(Name(found.host, found.repository, name.tag, name.digest))
    return mirrors


class _Login:
    """A `transport.Login` for one repository: anonymous, Basic (RFC 7617), or Bearer tokens
    (distribution/distribution, docs/content/spec/auth/token.md).

    oras only encodes the login, because its client has no limits of time or size, ignores
    $DOCKER_CONFIG and cannot read all challenges. A token is renewed when the registry
    refuses it, not when it expires.
    """

    def __init__(self, name: Name, base: str, session: Session) -> None:
        self._name = name
        self._session = session
        self._schemes = {"https", urlsplit(base).scheme}
        self._lock = threading.Lock()
        self._credentials: credentials.Credentials | None = None
        self._problems: list[FledgeError] = []
        self._authorization: str | None = None
        self._elsewhere: dict[str, str] = {}
        """The tokens for registries to which this one redirects, by URL and scope."""

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
                self._search()
            if bearer := _bearer(refusal):
                self._authorization = f"Bearer {self._token(bearer)}"
            elif self._credentials and self._credentials.username and not refused:
                self._authorization = f"Basic {self._basic(self._credentials)}"
            else:
                return False
            return True

    def redirected(self, refusal: requests.Response) -> str:
        """Get a token without a login: the user's is not for a registry of this one's choice."""
        path = PULLED.fullmatch(urlsplit(refusal.request.url or "").path)
        bearer = _bearer(refusal)
        if not path or not bearer:
            return ""
        url = self._token_url(bearer, [*_service(bearer), _scope(unquote(path[1]))]).geturl()
        with self._lock:
            refused = refusal.request.headers.get("Authorization")
            if self._elsewhere.get(url, refused) == refused:
                self._elsewhere[url] = f"Bearer {self._ask(url, {})}"
            return self._elsewhere[url]

    def _search(self) -> None:
        """Look for the user's login."""
        search = credentials.find(self._name, self._session.settings)
        self._credentials = search.credentials
        if not self._credentials:
            self._problems = search.problems
            for problem in search.problems:
                self._session.reporter.note(f"no login for {self._name.host}: {problem.message}")

    def refused(self, error: HttpStatusError) -> FledgeError:
        """Return the error to raise when the registry or its token server denies access."""
        host = self._name.host
        says = f", and says: {error.words}" if error.words else ""
        message = f"{host} denies access to {self._name.repository}"
        if self._problems:
            problem = self._problems[0]
            return type(problem)(
                f"{message} without a login{says}; {problem.message}", problem.hint
            )
        login = self._credentials
        again = f"docker login{'' if host == DOCKER_HUB else ' ' + host}"
        who = "without a login"
        if login and login.identity_token:
            who = f"with the identity token in {login.source}"
        elif login:
            who = f"with the login of {printable(login.username)} in {login.source}"
            if error.had_password and error.status == HTTPStatus.UNAUTHORIZED:
                return NetworkError(
                    f"{host} does not accept the login of {printable(login.username)} in"
                    f" {login.source}{says}",
                    f"User name or password are wrong, or have expired: run {again} again.",
                )
            return NetworkError(
                f"{message} {who}{says}",
                f"Check the name, and whether {printable(login.username) or 'that user'} may pull"
                f" it; {again} changes the user.",
            )
        return NetworkError(
            f"{message} {who}{says}", f"Check the name; if the image is private, run {again}."
        )

    def _token(self, bearer: Challenge) -> str:
        """Get a token that allows to pull this repository.

        The scope in the challenge is ignored, as in dockerd and skopeo: a registry must not get a
        token that allows more, or that is for another repository.
        """
        query = [*_service(bearer), _scope(self._name.repository)]
        url = self._token_url(bearer, query)
        login = self._credentials
        if login and login.identity_token and (token := self._exchanged(login, url, query)):
            return token
        headers = (
            {"Authorization": f"Basic {self._basic(login)}"} if login and login.username else {}
        )
        try:
            return self._ask(url.geturl(), headers)
        except HttpStatusError as error:
            if error.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                raise self.refused(error) from error
            raise

    def _token_url(self, bearer: Challenge, query: list[tuple[str, str]]) -> SplitResult:
        """Return the URL in a challenge, with a query added."""
        realm = bearer.parameters["realm"]
        url = _split_url(realm)
        # Any other URL could name a file of this machine, or reveal a password.
        if not url or url.scheme not in self._schemes:
            raise NetworkError(
                f"{self._name.host} wants a token from {printable_url(realm)!r},"
                " which is not an https URL",
                "Do not trust that registry.",
            )
        given = parse_qsl(url.query, keep_blank_values=True)
        own = [(name, value) for name, value in given if name != "scope"]
        return url._replace(query=urlencode(own + query), fragment="")

    def _exchanged(
        self, login: credentials.Credentials, url: SplitResult, query: list[tuple[str, str]]
    ) -> str:
        """Exchange an identity token for one that allows to pull (distribution/distribution,
        docs/content/spec/auth/oauth.md).

        Returns an empty string if the server does not accept it: identity tokens expire, and an
        image that everybody may pull needs none.
        """
        form = {
            "grant_type": "refresh_token",
            "refresh_token": login.identity_token,
            "client_id": "fledge",
            **dict(query),
        }
        try:
            return self._ask(url._replace(query="").geturl(), {}, form)
        except HttpStatusError as error:
            if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            self._session.reporter.note(
                f"the identity token in {login.source} is not accepted: {error.message}"
            )
            return ""

    def _ask(
        self, url: str, headers: Mapping[str, str], form: Mapping[str, str] | None = None
    ) -> str:
        """Ask a token server for a token; with ``form``, by a POST request."""
        where = printable_url(url)
        answer = self._session.fetcher.json(url, _FixedHeaders(headers), form=form)
        members = JsonObject(answer, where)
        token = members.text("token", "") or members.text("access_token", "")
        if not TOKEN.fullmatch(token):
            raise CorruptError(f"{where}: the answer contains no token")
        return token

    @staticmethod
    def _basic(login: credentials.Credentials) -> str:
        from oras.auth.utils import get_basic_auth  # noqa: PLC0415

        # JSON can hold half a surrogate pair, which has no UTF-8.
        texts = (login.username, login.password)
        return str(get_basic_auth(*(text.encode(errors="replace").decode() for text in texts)))


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

    def redirected(self, refusal: requests.Response) -> str:
        return ""


def _bearer(refusal: requests.Response) -> Challenge | None:
    """Return the challenge to get a token, None if there is none."""
    challenges = parse_challenges(refusal.headers.get("WWW-Authenticate", ""))
    return next((c for c in challenges if c.scheme == "bearer" and c.parameters.get("realm")), None)


def _service(bearer: Challenge) -> list[tuple[str, str]]:
    service = bearer.parameters.get("service")
    return [("service", service)] if service else []


def _scope(repository: str) -> tuple[str, str]:
    return "scope", f"repository:{repository}:pull"


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
    status = session.fetcher.probe(f"http://{host}/v2/")
    if status is None or status in NOT_PLAIN:
        try:
            if session.fetcher.probe(f"https://{host}/v2/") is not None:
                return f"https://{host}"
        except CertificateError:
            return f"https://{host}"
    return f"http://{host}"


def _allows_http(host: str, settings: Settings) -> bool:
    """Return whether a registry may be used without TLS: it is local, or the user allows it."""
    bare = urlsplit(f"//{host}").hostname or ""
    return is_loopback(bare) or not {host, bare}.isdisjoint(settings.insecure_registries)
