"""A repository of a registry, over HTTP (OCI distribution-spec; Docker registry API v2)."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar
from urllib.parse import urljoin, urlsplit

import msgspec

from fledge.errors import ConfigError, CorruptError, FledgeError, NetworkError
from fledge.host.settings import Settings
from fledge.net.exchange import (
    CertificateError,
    HttpStatusError,
    Outgoing,
    TooLargeError,
    is_loopback,
    printable_url,
)
from fledge.net.json_document import MAX_DOCUMENT_SIZE, JsonObject, parse_object
from fledge.oci.login import PULL, Login
from fledge.oci.manifest import Descriptor
from fledge.oci.reference import DOCKER_HUB, Name, RegistryReference, parse
from fledge.oci.upload import Upload
from fledge.report import Transfer
from fledge.session import Session
from fledge.tree.content import Span, read_content
from fledge.tree.digest import Digest
from fledge.tree.names import suggestion

if TYPE_CHECKING:
    from fledge.net.fetch import Answer, Fetcher

T = TypeVar("T")
Parameters = ParamSpec("Parameters")

DOCKER_HUB_SERVER = "registry-1.docker.io"

NOT_PLAIN = {301, 302, 303, 307, 308, HTTPStatus.BAD_REQUEST}
"""The statuses with which servers answer plain HTTP where they want TLS."""
FOREIGN = re.compile(r"\.foreign\.|\.nondistributable\.")
"""In the media type of layers that registries need not have (Docker manifest v2 schema 2; OCI
image-spec, layer.md)."""
NEXT_PAGE = re.compile(r'<([^<>"\s]+)>\s*;\s*rel="?next"?')
"""The ``Link`` to the next page of a list (RFC 8288)."""
BLOB_UNKNOWN = {HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND}
"""The statuses with which registries refuse a manifest whose blobs they do not have."""
ATTACHED = re.compile("sha256-[0-9a-f]{64}")
"""How tags begin that are not for people: those of lists of referrers (distribution-spec,
"Referrers Tag Schema"), and what cosign attaches."""
MAX_PAGES = 100
"""Pages of one list. A page has a thousand entries, or as many as the registry likes."""


class NoManifestError(NetworkError):
    """The registry has no such tag or digest."""


class BlobUnknownError(NetworkError):
    """The registry refuses a manifest, most likely because it lacks a blob that it names."""


class Repository(msgspec.Struct, frozen=True):
    """A repository of a registry, with the user's login."""

    name: Name
    url: str
    fetcher: Fetcher
    login: Login

    @classmethod
    def open(cls, name: Name, session: Session, actions: str = PULL) -> Repository:
        """Find out the registry's URL. ``actions`` are those of a login. Raises `NetworkError`."""
        base = _base_url(name.host, session)
        login = Login(name, base, session, actions)
        return cls(name, f"{base}/v2/{name.repository}", session.fetcher, login)

    def read_named_manifest(self) -> bytes:
        """Read the manifest or index that the name stands for."""
        return self.read_manifest(str(self.name.digest or self.name.tag), self.name.digest)

    def read_manifest(self, reference: str, digest: Digest | None = None) -> bytes:
        """Read the manifest or index with that tag or digest. Raises `NoManifestError`.

        ``digest`` is the one that it must have; None: any.
        """
        span = self._fetch(f"manifests/{reference}", "manifest", digest, MAX_DOCUMENT_SIZE)
        return self._read(span, "manifest", MAX_DOCUMENT_SIZE)

    def read_document(self, kind: str, label: str, descriptor: Descriptor) -> bytes:
        """Read a document into memory.

        ``kind`` is ``manifests`` or ``blobs``; ``label`` names the document in messages.
        """
        if descriptor.size > MAX_DOCUMENT_SIZE:
            raise self._too_large(label, MAX_DOCUMENT_SIZE)
        return self._read(self.fetch(kind, label, descriptor), label, MAX_DOCUMENT_SIZE)

    def read_blob(self, label: str, descriptor: Descriptor, limit: int) -> bytes:
        """Read a blob of at most ``limit`` bytes into memory."""
        return self._read(self.fetch("blobs", label, descriptor), label, limit)

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

    def has_blob(self, digest: Digest) -> bool:
        """Return whether the repository has a blob."""
        accepted = {HTTPStatus.OK, HTTPStatus.NOT_FOUND}
        answer = self._send(f"blobs/{digest}", Outgoing("HEAD"), accepted)
        return answer.status == HTTPStatus.OK

    def upload(self, data: bytes | Span, digest: Digest, transfer: Transfer) -> None:
        """Upload a blob. ``transfer`` is told the bytes that the registry has taken."""
        upload = Upload(self._url("blobs/uploads/"), data, digest, self.login, self.fetcher)
        try:
            upload.run(transfer)
        except HttpStatusError as error:
            raise self._explain(error, "blobs/uploads/") from error

    def put_manifest(self, reference: str, media_type: str, manifest: bytes) -> Answer:
        """Store a manifest or index under a tag or its own digest.

        Raises `BlobUnknownError` if the registry lacks a blob that it names.
        """
        outgoing = Outgoing("PUT", body=manifest)
        path = f"manifests/{reference}"
        created = {HTTPStatus.CREATED, HTTPStatus.OK, HTTPStatus.ACCEPTED}
        headers = {"Content-Type": media_type}
        try:
            return self.fetcher.send(self._url(path), self.login, outgoing, created, headers)
        except HttpStatusError as error:
            if error.status not in BLOB_UNKNOWN:
                raise self._explain(error, path) from error
            raise BlobUnknownError(
                error.message,
                "The registry lacks part of what was pushed, or takes no artifacts of this kind.",
            ) from error

    def delete_manifest(self, digest: Digest) -> bool:
        """Delete a manifest. Return False if the registry does not have it (any more)."""
        accepted = {HTTPStatus.ACCEPTED, HTTPStatus.OK, HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND}
        answer = self._send(f"manifests/{digest}", Outgoing("DELETE"), accepted)
        return answer.status != HTTPStatus.NOT_FOUND

    def pages(self, path: str) -> Iterator[bytes]:
        """Yield the pages of a list: tags, or referrers. None if the registry lacks the list.

        Raises `NetworkError`, also if the list has no end.
        """
        missing = {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.BAD_REQUEST}
        for _ in range(MAX_PAGES):
            answer = self._send(path, Outgoing(), {HTTPStatus.OK, *missing})
            if answer.status in missing:
                return
            yield answer.body
            following = NEXT_PAGE.search(answer.headers.get("Link", ""))
            if not following:
                return
            url = urljoin(self._url(path), following[1])
            if not url.startswith(f"{self.url}/"):
                raise NetworkError(
                    f"{self.name}: the registry says that the next page of a list is at"
                    f" {printable_url(url)}",
                    "Ask whoever runs that registry: it must be in the same repository.",
                )
            path = url.removeprefix(f"{self.url}/")
        raise NetworkError(
            f"{self.name}: the registry has a list of more than {MAX_PAGES} pages",
            "Ask whoever runs that registry.",
        )

    def _send(self, path: str, outgoing: Outgoing, accepted: set[HTTPStatus]) -> Answer:
        try:
            return self.fetcher.send(self._url(path), self.login, outgoing, accepted)
        except HttpStatusError as error:
            raise self._explain(error, path) from error

    def _url(self, path: str) -> str:
        return f"{self.url}/{path}"

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

    def _read(self, span: Span, label: str, limit: int) -> bytes:
        if span.size > limit:
            raise self._too_large(label, limit)
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
        return NetworkError(message, "It is incomplete there: push it again.")

    def tags(self) -> list[str]:
        """Return all tags that people have chosen; none if there is no such repository.

        Those of lists of referrers, and what cosign attaches, are left out.
        """
        found: list[str] = []
        for page in self.pages("tags/list?n=1000"):
            document = parse_object(page, f"{self.name}: the list of tags")
            # Go writes an empty list as null.
            found += document.texts("tags") if document.has("tags") else []
        return [tag for tag in found if not ATTACHED.match(tag)]

    def _suggestion(self) -> str:
        """Return the hint for a tag or digest that does not exist."""
        url = f"{self.url}/tags/list?n=1000"
        with suppress(NetworkError, CorruptError):
            try:
                tags = JsonObject(self.fetcher.json(url, self.login), url).texts("tags")
                tags = [tag for tag in tags if not ATTACHED.match(tag)]
            except HttpStatusError as error:
                if error.status == HTTPStatus.NOT_FOUND:
                    return "Check the name; there is no such repository."
                raise
            if not self.name.digest:
                return suggestion(self.name.tag or "", tags) or "It has no tags."
        return "Check the tag or digest."


class Places:
    """The places that have an image, asked in turn: the mirrors of its registry, then the registry.

    A mirror that fails once is not asked again. Threads may share one.
    """

    def __init__(self, name: Name, session: Session) -> None:
        self._session = session
        # Nobody is asked offline, and the cache does not care who would have been.
        mirrors = [] if session.offline else _mirrors(name, session.settings)
        self._names = [*mirrors, name]
        self._lock = threading.Lock()
        self._opened: dict[Name, Repository] = {}

    @property
    def are_offline(self) -> bool:
        """Whether only the cache is asked."""
        return self._session.offline

    def ask(
        self,
        request: Callable[Concatenate[Repository, Parameters], T],
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

    def search(
        self,
        request: Callable[Concatenate[Repository, Parameters], list[T]],
        *args: Parameters.args,
        **options: Parameters.kwargs,
    ) -> list[T]:
        """Return the first list that is not empty. A mirror need not have all that is listed."""
        for name in list(self._names[:-1]):
            with suppress(FledgeError):
                if found := request(self._repository(name), *args, **options):
                    return found
        return request(self._repository(self._names[-1]), *args, **options)

    def _repository(self, name: Name) -> Repository:
        with self._lock:
            if name not in self._opened:
                self._opened[name] = Repository.open(name, self._session)
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
