"""Downloads files into the cache, with retries and resumption.

Servers are not trusted: the size of a file, the number of failures and the length of a stall are
limited, and memory does not grow with the size of a file.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar
from urllib.parse import unquote_to_bytes, urlsplit

import msgspec
import requests

from fledge.errors import ConfigError, CorruptError, NetworkError, OfflineError
from fledge.net.bodies import (
    MAX_PARSED,
    decode,
    describe,
    encoded_limit,
    is_encoded,
    is_web_page,
)
from fledge.net.exchange import (
    CertificateError,
    Headers,
    HttpStatusError,
    Outgoing,
    TooLargeError,
    TransientError,
    printable_url,
)
from fledge.net.transport import (
    CHUNK_SIZE,
    MAX_RESPONSE_SIZE,
    TRY_LATER,
    Transport,
    http_date,
    limited,
    read_body,
)
from fledge.report import Reporter, Transfer, human_size
from fledge.store.cache import Cache, Partial
from fledge.tree.content import Blob
from fledge.tree.digest import Digest
from fledge.tree.regular import open_regular

MAX_DOWNLOAD_SIZE = (1 << 32) - 1
"""Maximum bytes in a file unless the caller sets another limit: newc stores sizes in 32 bits."""
MAX_TRIES = 5
"""Maximum consecutive tries without progress."""
MIN_PROGRESS = 64 << 10
"""Minimum bytes that count as progress of a try."""
MAX_PAUSE = 60.0
"""Maximum seconds between two tries, whatever Retry-After says."""

WRONG_SERVER = (
    "Check the URL, and whether a proxy or the login page of a network answers in place of the"
    " server."
)

RANGE_REFUSED = {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_IMPLEMENTED}
"""The statuses with which servers and proxies refuse a Range that they do not understand."""

CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", re.ASCII)

T = TypeVar("T")


class _Request(msgspec.Struct, frozen=True):
    url: str
    headers: Headers
    limit: int
    """Maximum bytes in the file."""
    digest: Digest | None
    size: int | None
    """Bytes in the file. None: not known."""


class Answer(msgspec.Struct, frozen=True):
    """What a server answers to `Fetcher.send`."""

    status: int
    headers: Mapping[str, str]
    """Names may be in any case."""
    body: bytes
    url: str
    """Where the request went."""
    where: str
    """The URL, safe to print."""


class Fetcher(msgspec.Struct, frozen=True):
    """Downloads files for one build. Several threads may use it at the same time.

    Every method takes an http, https or file URL. It raises `ConfigError` for any other URL and
    for a local file that cannot be read, `NetworkError` if the server does not deliver. Transient
    failures are retried.
    """

    cache: Cache
    reporter: Reporter
    offline: bool = False
    """Read only the cache and local files."""
    backoff: float = 0.5
    """Seconds before the first retry; each further pause is twice as long."""
    _transport: Transport = msgspec.field(default_factory=Transport)

    def fetch(
        self,
        url: str,
        label: str,
        digest: Digest | None = None,
        headers: Headers | None = None,
        limit: int = MAX_DOWNLOAD_SIZE,
        size: int | None = None,
    ) -> Blob:
        """Return the file at a URL; download it unless the cache has a blob with its digest.

        ``label`` names the file in messages. ``digest`` and ``size`` are None if they are not
        known in advance. An ``Authorization`` header is not sent to other hosts (RFC 9110 section
        15.4). Raises `CorruptError` if the file has another digest or is a web page,
        `TooLargeError` if the server sends more than ``limit`` bytes.
        """
        local = _scheme(url) == "file"
        if digest and (blob := self.cache.find(digest)):
            self.reporter.detail(f"{label}: {human_size(blob.size)} from the cache")
            return blob
        if self.offline and not local:
            raise _offline(url, label, digest)

        def waiting() -> None:
            self.reporter.note(f"{label}: waiting for another build that downloads it")

        with self.cache.partial(digest, waiting) as partial:
            if digest and (blob := self.cache.find(digest)):
                return blob
            # They are equal if an earlier build was killed after the last byte.
            if partial.digest != digest:
                with self.reporter.transfer(label) as transfer:
                    if local:
                        _copy(url, partial, transfer)
                    else:
                        request = _Request(url, headers or {}, limit, digest, size)
                        self._download(request, partial, transfer)
            start = _start(partial)
            if not local and is_web_page(start) and partial.digest != digest:
                partial.restart()
                raise CorruptError(
                    f"{label}: {printable_url(url)} answers with {describe(start)}", WRONG_SERVER
                )
            if digest and partial.digest != digest:
                actual = partial.digest
                partial.restart()
                raise CorruptError(
                    f"{label}: {printable_url(url)} has sha256 {actual.hex}, expected {digest.hex}",
                    "Either that file has changed or the checksum is wrong;"
                    " compare it with the checksum that the publisher gives.",
                )
            fetched = human_size(partial.size)
            self.reporter.detail(f"{label}: {fetched} from {printable_url(url)}")
            return self.cache.add(partial)

    def probe(self, url: str) -> int | None:
        """Return the status with which a server answers, None if it does not speak HTTP there.

        It is asked once, without a login. Raises `CertificateError`, or `HostError` for unusable
        CA certificates.
        """
        try:
            return self._transport.probe(url)
        except CertificateError:
            raise
        except (NetworkError, TransientError):
            return None

    def text(self, url: str, headers: Headers | None = None, limit: int = MAX_RESPONSE_SIZE) -> str:
        """Return a response of at most ``limit`` bytes, decoded as UTF-8. It is not cached.

        Raises `NetworkError` if it is not UTF-8, `TooLargeError` if it is longer.
        """
        body = self._read(url, headers or {}, limit)
        try:
            return body.decode()
        except UnicodeDecodeError as error:
            raise _unexpected(url, "text", body) from error

    def json(
        self,
        url: str,
        headers: Headers | None = None,
        limit: int = MAX_RESPONSE_SIZE,
        form: Mapping[str, str] | None = None,
    ) -> object:
        """Return a response of at most ``limit`` bytes, parsed as JSON. It is not cached.

        With ``form``, send these fields by POST, and follow no redirect.

        Raises `NetworkError` if it is not JSON, `TooLargeError` if it is longer.
        """
        body = self._read(url, headers or {}, limit, form)
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise _unexpected(url, "JSON", body) from error

    def send(
        self,
        url: str,
        headers: Headers,
        outgoing: Outgoing,
        accepted: Collection[int],
        more_headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Answer:
        """Send a request, again after a transient failure; return the answer.

        ``headers`` may be a login; ``accepted`` are the statuses that are not errors.
        """
        return self.retry(
            lambda: self.send_once(url, headers, outgoing, accepted, more_headers), lambda: 0
        )

    def send_once(
        self,
        url: str,
        headers: Headers,
        outgoing: Outgoing,
        accepted: Collection[int],
        more_headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Answer:
        """Do what `send` does, but raise `TransientError` for a failure that may pass."""
        if self.offline:
            raise OfflineError(
                f"{printable_url(url)} cannot be asked offline", "Run without --offline."
            )
        opened = self._transport.open(url, headers, more_headers, accepted, outgoing)
        with opened as (response, where):
            total = response.raw.length_remaining
            pace = self._transport.pace
            body = _join(read_body(response, where, 0, total, MAX_RESPONSE_SIZE, pace))
            return Answer(response.status_code, response.headers, body, url, where)

    def _read(
        self, url: str, headers: Headers, limit: int, form: Mapping[str, str] | None = None
    ) -> bytes:
        if _scheme(url) == "file":
            return _join(_local(url, limit))
        if self.offline:
            raise OfflineError(
                f"{printable_url(url)} cannot be looked up offline",
                "Pin the file by its sha256 in fledge.toml, or run without --offline.",
            )

        pace = self._transport.pace
        outgoing = Outgoing() if form is None else Outgoing("POST", form)

        def attempt() -> bytes:
            opened = self._transport.open(url, headers, {}, {HTTPStatus.OK}, outgoing)
            with opened as (response, where):
                total = response.raw.length_remaining
                if not is_encoded(response.headers):
                    return _join(read_body(response, where, 0, total, limit, pace))
                pieces = read_body(response, where, 0, total, encoded_limit(limit), pace)
                return _join(limited(decode(pieces, where), where, limit))

        return self.retry(attempt, lambda: 0)

    def _download(self, request: _Request, partial: Partial, transfer: Transfer) -> None:
        """Complete the partial blob. Continue after its data where that is safe."""
        download = _Download(request, partial, transfer, self._transport)
        self.retry(download.attempt, lambda: partial.size)
        if request.digest in (None, partial.digest):
            return
        where = printable_url(request.url)
        # Some stores announce as an encoding what is the file itself: decode only if that fails.
        if download.encoded:
            download.decoding = True
        elif download.resumed:
            self.reporter.note(f"{where}: wrong checksum; downloading it again from the start")
        else:
            return
        partial.restart()
        self.retry(download.attempt, lambda: partial.size)

    def retry(self, attempt: Callable[[], T], size: Callable[[], int]) -> T:
        """Call ``attempt`` until it succeeds, fails for good, or makes no progress in `MAX_TRIES`.

        ``size`` returns the bytes received so far. Only bytes beyond the largest size so far
        count as progress, so the number of tries is bounded by the size of the file. They must
        have come fast enough, so a server gains nothing by beginning again and again.
        """
        most = size()
        seconds = 0.0
        failures = 0
        told = ""
        while True:
            start = time.monotonic()
            try:
                return attempt()
            except TransientError as transient:
                failures += 1
                seconds += time.monotonic() - start
                if size() >= most + max(MIN_PROGRESS, self._transport.pace.due(seconds)):
                    most = size()
                    seconds = 0
                    failures = 1
                if failures == MAX_TRIES:
                    raise transient.error from transient
                backoff = self.backoff * 2 ** (failures - 1)
                pause = min(backoff if transient.wait is None else transient.wait, MAX_PAUSE)
                message = transient.error.message
                problem = "the same again" if message == told else message
                told = message
                self.reporter.note(f"{problem}; trying again in {pause:g} s")
                time.sleep(pause)


class _Download:
    """The tries of one download, and what they have learned about the server."""

    def __init__(
        self, request: _Request, partial: Partial, transfer: Transfer, transport: Transport
    ) -> None:
        self.resumed = False
        """Whether the data comes from several responses."""
        self.encoded = False
        """Whether the last response was compressed for the way."""
        self.decoding = not request.digest
        """Whether to decompress what was compressed for the way."""
        self._request = request
        self._partial = partial
        self._transfer = transfer
        self._transport = transport
        self._validator = ""
        self._ranges = True

    def attempt(self) -> None:
        """Send one request, and append what it returns to the partial blob."""
        request, partial = self._request, self._partial
        range_headers = {}
        accepted = {HTTPStatus.OK}
        if partial.size and self._ranges and (request.digest or self._validator):
            range_headers["Range"] = f"bytes={partial.size}-"
            accepted |= {HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE}
            if not request.digest:
                range_headers["If-Range"] = self._validator
        try:
            opened = self._transport.open(request.url, request.headers, range_headers, accepted)
            with opened as (response, where):
                self._receive(response, where)
        except HttpStatusError as error:
            if not range_headers or error.status not in RANGE_REFUSED:
                raise
            self._ranges = False
            partial.restart()
            raise TransientError(error, wait=0) from error

    def _receive(self, response: requests.Response, where: str) -> None:
        request, partial = self._request, self._partial
        total: int | None
        if response.status_code == HTTPStatus.OK:
            partial.restart()
            self.encoded = is_encoded(response.headers)
            self._validator = _validator(response.headers)
            total = response.raw.length_remaining
        else:
            # It may be a 416, or a part that was not requested.
            part = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if not part or int(part[1]) != partial.size:
                partial.restart()
                failure = NetworkError(f"{where}: cannot be resumed", TRY_LATER)
                raise TransientError(failure, wait=0)
            self.resumed = True
            total = None if part[2] == "*" else int(part[2])
        limit = encoded_limit(request.limit) if self.encoded else request.limit
        # Without a length the end of a response looks like its failure.
        total = request.size if total is None and not self.encoded else total
        self._transfer.restart(partial.size, total)
        pieces = read_body(response, where, partial.size, total, limit, self._transport.pace)
        try:
            if self.encoded and self.decoding:
                self._validator = ""  # parts are counted in encoded bytes
                pieces = limited(decode(pieces, where), where, request.limit)
            for piece in pieces:
                partial.write(piece)
                self._transfer.advance(len(piece))
        except TooLargeError:
            partial.restart()  # the next try would fail too
            raise
        except TransientError:
            if self.encoded and self.decoding:
                partial.restart()
            # Else it may be complete, and the size that was expected be wrong.
            if partial.digest != request.digest:
                raise


def _validator(headers: Mapping[str, str]) -> str:
    """Return the If-Range value with which this response can be resumed; empty if it cannot.

    It is a strong entity tag or, if the response has no entity tag, a modification time that is
    at least a second before the response (RFC 9110 sections 13.1.5 and 8.8.2.2).
    """
    if tag := headers.get("ETag"):
        return tag if tag.startswith('"') else ""
    modified = headers.get("Last-Modified", "")
    changed, sent = http_date(modified), http_date(headers.get("Date", ""))
    return modified if changed and sent and sent - changed >= timedelta(seconds=1) else ""


def _join(pieces: Iterable[bytes]) -> bytes:
    # b"".join would keep every piece in memory, and a hostile server may send single bytes.
    joined = bytearray()
    for piece in pieces:
        joined += piece
    return bytes(joined)


def _copy(url: str, partial: Partial, transfer: Transfer) -> None:
    partial.restart()
    transfer.restart(0, None)
    for piece in _local(url, MAX_DOWNLOAD_SIZE):
        partial.write(piece)
        transfer.advance(len(piece))


def _local(url: str, limit: int) -> Iterator[bytes]:
    """Yield the bytes of a file on this machine, named by a file URL (RFC 8089)."""
    where = printable_url(url)
    parts = urlsplit(url)
    path = Path(os.fsdecode(unquote_to_bytes(parts.path)))
    if parts.netloc not in ("", "localhost") or not path.is_absolute():
        raise ConfigError(f"{where} is not on this machine", "Write file:///ABSOLUTE/PATH.")
    try:
        left = limit
        with open_regular(path) as file:
            while piece := file.read(CHUNK_SIZE):
                left -= len(piece)
                if left < 0:
                    raise ConfigError(f"{where} has more than {limit} bytes", "Name a smaller one.")
                yield piece
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise ConfigError(f"{where} cannot be read: {reason}", "Check the path.") from error


def _scheme(url: str) -> str:
    """Return ``http``, ``https`` or ``file``. Raises `ConfigError` for any other URL."""
    with suppress(ValueError):
        parts = urlsplit(url)
        web = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        if web or parts.scheme == "file":
            return parts.scheme
    # In an invalid URL a password may contain any character: hide everything up to the last @.
    raise ConfigError(
        f"{printable_url(re.sub('//.*@', '//', url))} is not a URL that can be downloaded",
        "Write a URL that begins with https://, http:// or file:///.",
    )


def _offline(url: str, label: str, digest: Digest | None) -> OfflineError:
    if not digest:
        return OfflineError(
            f"{label}: {printable_url(url)} cannot be looked up offline without a checksum",
            "Add its sha256 to fledge.toml, or run without --offline.",
        )
    return OfflineError(
        f"{label}: {printable_url(url)} (sha256 {digest.hex}) is not in the cache",
        "Run once without --offline.",
    )


def _unexpected(url: str, kind: str, body: bytes) -> NetworkError:
    return NetworkError(
        f"{printable_url(url)}: the answer is not {kind} but {describe(body)}", WRONG_SERVER
    )


def _start(partial: Partial) -> bytes:
    return os.pread(partial.file.fileno(), MAX_PARSED, 0)
