"""Downloads: one `Fetcher` for everything that fledge gets from elsewhere.

No server is trusted: how much it may send, how often it may fail and how long it may stall
are bounded, and memory does not grow with the size of a file.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import stat
import string
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit

import requests
import urllib3.exceptions
from requests.utils import select_proxy

from fledge import __version__
from fledge.cache import Cache, Partial
from fledge.content import Blob
from fledge.errors import ConfigError, CorruptError, HostError, NetworkError
from fledge.report import Reporter, Transfer

MAX_SIZE = (1 << 32) - 1
"""Bytes in a file, unless the caller knows better: newc has 32 bits for its size."""
MAX_ANSWER = 8 << 20
"""Bytes in an answer that is held in memory."""
MAX_EXCERPT = 4 << 10
"""Bytes kept of an answer that is an error."""
CHUNK = 256 << 10

CONNECT_TIMEOUT = 15.0
READ_TIMEOUT = 60.0
"""Seconds; a transfer that brings less than `MIN_PROGRESS` in that time has stalled."""
MIN_PROGRESS = 64 << 10
"""Bytes that make a failed try count as progress."""
MAX_TRIES = 5
"""How often in a row to try without progress."""
MAX_WAIT = 60.0
"""Seconds between two tries, whatever Retry-After asks for."""
MAX_REDIRECTS = 10

RETRIED = frozenset({408, 429, 500, 502, 503, 504})
CHECK_URL = "Check the URL."
TRY_LATER = "Try again later, or check the network connection."
CHECK_PROXY = "Check http_proxy, https_proxy and no_proxy in the environment."
STATUS_HINTS = {
    401: "It wants a login, or does not accept the one that it got.",
    403: "It does not allow that without a login, or not with the one that it got.",
    404: "Check the URL; the file may have been moved or removed.",
    407: "Put user name and password of the proxy into http_proxy and https_proxy.",
    410: "Check the URL; the file has been removed.",
    429: "It has had too many requests; try again later.",
}

CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", re.ASCII)
TUNNEL_STATUS = re.compile(r"Tunnel connection failed: (\d{3})")

T = TypeVar("T")


class HttpStatusError(NetworkError):
    """The server answered with a status that is no success.

    ``body`` is the beginning of what it said: not trusted, so not for a terminal as it is.
    """

    def __init__(
        self, message: str, hint: str, status: int, headers: Mapping[str, str], body: str
    ) -> None:
        super().__init__(message, hint)
        self.status = status
        self.headers = headers
        self.body = body


class TooLargeError(NetworkError):
    """The server sends more than it may."""


@runtime_checkable
class Login(Protocol):
    """Headers for a server that wants to know who asks. Threads may use one together."""

    def headers(self) -> Mapping[str, str]:
        """What to send now."""

    def renew(self, refusal: requests.Response) -> bool:
        """Find out what to send after that answer, a 401; whether another try makes sense.

        Raises `FledgeError`.
        """


Headers = Mapping[str, str] | Login


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What to ask for, and how many bytes of it to take at most."""

    url: str
    headers: Headers
    limit: int


@dataclass(frozen=True)
class Fetcher:
    """What all downloads of a build share. Threads may use one together.

    Every method takes an http, https or file URL, raises `ConfigError` for any other or if
    the file is not there, and `NetworkError` if the server does not give what it is asked
    for. Passing failures are tried again; the first pause is ``backoff`` seconds, and each
    further one twice as long.
    """

    cache: Cache
    reporter: Reporter
    offline: bool = False
    backoff: float = 0.5
    _session: requests.Session = field(default_factory=requests.Session, init=False, repr=False)

    def fetch(
        self,
        url: str,
        label: str,
        sha256: str | None = None,
        headers: Headers | None = None,
        limit: int = MAX_SIZE,
    ) -> Blob:
        """The file at the URL, from the cache if its digest is known and in there.

        ``label`` names it for people. An ``Authorization`` header goes to no other host
        (RFC 9110 section 15.4). Raises `CorruptError` if the file has another digest,
        `TooLargeError` if a server sends more than ``limit`` bytes.
        """
        local = _scheme(url) == "file"
        if sha256 and (blob := self.cache.find(sha256)):
            return blob
        if self.offline and not local:
            raise _offline(url, label, sha256)

        def waiting() -> None:
            self.reporter.note(f"{label}: waiting for another build that downloads it")

        with self.cache.partial(sha256, waiting) as partial:
            if sha256 and (blob := self.cache.find(sha256)):
                return blob
            # They are equal if a build was killed when all was there.
            if partial.sha256 != sha256:
                with self.reporter.transfer(label) as transfer:
                    if local:
                        _copy(url, partial, transfer)
                    else:
                        wanted = _Wanted(url, headers or {}, limit)
                        self._download(wanted, sha256, partial, transfer)
            if sha256 and partial.sha256 != sha256:
                actual = partial.sha256
                partial.restart()
                raise CorruptError(
                    f"{label}: {printable_url(url)} has sha256 {actual}, expected {sha256}",
                    "Either that file has changed or the checksum is wrong;"
                    " compare it with the one that its publisher gives.",
                )
            return self.cache.add(partial)

    def text(
        self, url: str, headers: Mapping[str, str] | None = None, limit: int = MAX_ANSWER
    ) -> str:
        """A small answer, of at most ``limit`` bytes of UTF-8; it is not cached."""
        try:
            return self._read(url, headers or {}, limit).decode()
        except UnicodeDecodeError as error:
            raise _unexpected(url, "text") from error

    def json(self, url: str, headers: Headers | None = None, limit: int = MAX_ANSWER) -> object:
        """A small answer of at most ``limit`` bytes of JSON; it is not cached."""
        try:
            return json.loads(self._read(url, headers or {}, limit))
        except (ValueError, RecursionError) as error:
            raise _unexpected(url, "JSON") from error

    def _read(self, url: str, headers: Headers, limit: int) -> bytes:
        if _scheme(url) == "file":
            return _joined(_local(url, limit))
        if self.offline:
            raise NetworkError(
                f"{printable_url(url)} cannot be looked up offline",
                "Pin what is looked up there in fledge.toml, or run without --offline.",
            )

        def attempt() -> bytes:
            wanted = _Wanted(url, headers, limit)
            with self._open(wanted, {}, {HTTPStatus.OK}) as (response, where):
                return _joined(_body(response, where, 0, response.raw.length_remaining, limit))

        return self._persist(attempt, lambda: 0)

    def _download(
        self, wanted: _Wanted, sha256: str | None, partial: Partial, transfer: Transfer
    ) -> None:
        """Fill the partial, going on from what it holds where that is safe."""
        validator = ""
        resumed = False

        def attempt() -> None:
            nonlocal validator, resumed
            range_headers = {}
            accepted = {HTTPStatus.OK}
            if partial.size and (sha256 or validator):
                range_headers["Range"] = f"bytes={partial.size}-"
                accepted |= {HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE}
                if not sha256:
                    range_headers["If-Range"] = validator
            with self._open(wanted, range_headers, accepted) as (response, where):
                total: int | None
                if response.status_code == HTTPStatus.OK:
                    partial.restart()
                    validator = _validator(response.headers)
                    total = response.raw.length_remaining
                else:
                    # It may be a 416, or another part than the one asked for.
                    part = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
                    if not part or int(part[1]) != partial.size:
                        partial.restart()
                        raise _Passing(NetworkError(f"{where}: cannot be resumed", TRY_LATER), 0)
                    resumed = True
                    total = None if part[2] == "*" else int(part[2])
                transfer.restart(partial.size, total)
                try:
                    for piece in _body(response, where, partial.size, total, wanted.limit):
                        partial.write(piece)
                        transfer.advance(len(piece))
                except TooLargeError:
                    partial.restart()  # there is nothing to go on with
                    raise

        self._persist(attempt, lambda: partial.size)
        if resumed and sha256 not in (None, partial.sha256):
            where = printable_url(wanted.url)
            self.reporter.note(f"{where}: wrong checksum; downloading it from zero")
            partial.restart()
            self._persist(attempt, lambda: partial.size)

    def _persist(self, attempt: Callable[[], T], size: Callable[[], int]) -> T:
        """Call ``attempt`` until it works, fails for good, or `MAX_TRIES` in a row bring nothing.

        ``size`` is how much there is so far. Only what exceeds the most there ever was counts
        as progress, so the number of tries is bounded by the size of the file.
        """
        most = size()
        failures = 0
        while True:
            try:
                return attempt()
            except _Passing as passing:
                failures += 1
                if size() >= most + MIN_PROGRESS:
                    most = size()
                    failures = 1
                if failures == MAX_TRIES:
                    raise passing.error from passing
                pause = self.backoff * 2 ** (failures - 1) if passing.wait is None else passing.wait
                pause = min(pause, MAX_WAIT)
                self.reporter.note(f"{passing.error.message}; trying again in {pause:g} s")
                time.sleep(pause)

    @contextmanager
    def _open(
        self, wanted: _Wanted, range_headers: Mapping[str, str], accepted: Collection[int]
    ) -> Iterator[tuple[requests.Response, str]]:
        """Ask for the URL; the answer, its body unread, and how to call it in messages.

        Redirects are followed here: requests would read the body of one, however long, and
        follow it to any scheme.
        """
        where = printable_url(wanted.url)
        request = first = self._first(wanted, range_headers)
        login = wanted.headers if isinstance(wanted.headers, Login) else None
        for _ in range(MAX_REDIRECTS + 1):
            with self._send(request, where) as response:
                refused = response.status_code == HTTPStatus.UNAUTHORIZED
                if refused and login and request is first and login.renew(response):
                    request, login = self._first(wanted, range_headers), None
                    continue
                if not response.is_redirect:
                    if response.status_code not in accepted:
                        raise _refusal(response, where)
                    yield response, where
                    return
            request = self._redirected(request, response.headers["Location"], where)
            where = printable_url(wanted.url)
            if _host(request) != _host(first):
                where += f" (redirected to {_host(request)})"
        raise NetworkError(f"{where}: more than {MAX_REDIRECTS} redirects", CHECK_URL)

    def _first(self, wanted: _Wanted, range_headers: Mapping[str, str]) -> requests.PreparedRequest:
        """The request before any redirect."""
        own = wanted.headers
        headers = own.headers() if isinstance(own, Login) else own
        given = "Authorization" in requests.structures.CaseInsensitiveDict(headers)
        find_login = not given and not isinstance(own, Login)
        where = printable_url(wanted.url)
        return self._prepare(wanted.url, {**headers, **range_headers}, where, find_login)

    def _prepare(
        self, url: str, headers: Mapping[str, str], where: str, find_login: bool
    ) -> requests.PreparedRequest:
        """The request, perhaps with the login that is in the URL or in ~/.netrc."""
        # Ranges and lengths must mean the bytes of the file.
        own = {"Accept-Encoding": "identity", "User-Agent": f"fledge/{__version__}"}
        try:
            return self._session.prepare_request(
                requests.Request(
                    "GET", url, {**own, **headers}, auth=None if find_login else _as_it_is
                )
            )
        except requests.exceptions.InvalidHeader as error:
            raise _unsendable(where) from error
        except ValueError as error:
            raise NetworkError(f"{where}: no valid URL", CHECK_URL) from error

    def _send(self, request: requests.PreparedRequest, where: str) -> requests.Response:
        url = request.url or ""
        settings = self._session.merge_environment_settings(url, {}, True, None, None)
        try:
            # Not session.send: it reads the body of a redirect into memory.
            return self._session.get_adapter(url).send(
                request,
                timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
                **settings,  # type: ignore[arg-type]  # for the stubs, verify may be None
            )
        except UnicodeEncodeError as error:
            raise _unsendable(where) from error
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            proxy = printable_url(select_proxy(url, settings["proxies"]) or "")
            raise _unanswered(error, where, _host(request), proxy) from error
        except OSError as error:
            raise HostError(
                f"the CA certificates in {settings['verify']} cannot be used",
                "Let REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE in the environment name a PEM file.",
            ) from error

    def _redirected(
        self, request: requests.PreparedRequest, location: str, where: str
    ) -> requests.PreparedRequest:
        """The request that a redirect asks for; RFC 9110 section 15.4 on what it may carry."""
        try:
            url = urljoin(request.url or "", location)
            scheme = urlsplit(url).scheme
        except ValueError:
            scheme = ""
        if scheme not in ("http", "https"):
            raise NetworkError(
                f"{where}: redirects to something else than an http or https URL",
                "Check the URL, and whether the server can be trusted.",
            )
        following = self._prepare(url, request.headers, where, find_login=False)
        # Both URLs as requests wrote them: parsers differ on the host of a hostile one.
        if _origin(following) != _origin(request):
            following.headers.pop("Authorization", None)
        return following


def printable_url(url: str) -> str:
    """The URL for people: without user name and password, and safe for a terminal."""
    return quote(re.sub(r"//[^/?#]*@", "//", url), safe=string.punctuation)


class _Passing(Exception):
    """A failure that may be gone at the next try, in ``wait`` seconds if the server says so."""

    def __init__(self, error: NetworkError, wait: float | None = None) -> None:
        super().__init__(error)
        self.error = error
        self.wait = wait


@dataclass(frozen=True, slots=True)
class _Trouble:
    """How to explain that a request got no answer, by the exception behind it."""

    cause: type[Exception]
    what: str
    hint: str
    passing: bool = True


# The first that fits; where requests wraps a cause, the cause says more.
TROUBLES = (
    _Trouble(
        requests.exceptions.ProxyError, "the proxy {proxy} cannot be used: {detail}", CHECK_PROXY
    ),
    _Trouble(requests.exceptions.InvalidProxyURL, "the proxy has no valid URL", CHECK_PROXY, False),
    _Trouble(
        requests.exceptions.InvalidSchema,
        "the proxy {proxy} is of a kind that is not supported",
        CHECK_PROXY,
        False,
    ),
    _Trouble(
        ssl.SSLCertVerificationError,
        "the certificate of {host} cannot be trusted: {detail}",
        "If your network has certificates of its own, let REQUESTS_CA_BUNDLE name a PEM file"
        " with its CA; else do not trust that server.",
        False,
    ),
    _Trouble(
        requests.exceptions.SSLError,
        "no secure connection to {host}",
        "Check the port, and whether the server speaks https.",
    ),
    _Trouble(
        socket.gaierror,
        "the name of the server {host} cannot be found",
        "Check its spelling and the network connection; a proxy may be needed (https_proxy).",
    ),
    _Trouble(
        requests.exceptions.ConnectTimeout,
        "{host} did not accept a connection in time",
        TRY_LATER,
    ),
    _Trouble(requests.exceptions.ReadTimeout, "{host} did not answer in time", TRY_LATER),
    _Trouble(
        ConnectionRefusedError,
        "{host} refuses the connection",
        "Check the port, and whether the server runs.",
    ),
    _Trouble(ConnectionError, "{host} closed the connection without an answer", TRY_LATER),
    _Trouble(
        http.client.HTTPException,
        "{host} does not speak HTTP",
        "Check the port, and whether it is one for https.",
    ),
    _Trouble(Exception, "{host} cannot be reached: {detail}", TRY_LATER),
)


def _unanswered(error: Exception, where: str, host: str, proxy: str) -> NetworkError | _Passing:
    """What to raise for a request that got no answer."""
    if tunnel := TUNNEL_STATUS.search(str(error)):
        status = int(tunnel[1])
        what = f"the proxy {proxy} answers {_named(status)}"
        refusal = NetworkError(f"{where}: {what}", STATUS_HINTS.get(status, CHECK_PROXY))
        return _Passing(refusal) if status in RETRIED else refusal
    causes = list(_causes(error))
    trouble, cause = next(
        (trouble, cause)
        for trouble in TROUBLES
        for cause in causes
        if isinstance(cause, trouble.cause)
    )
    reasons = [inner.strerror for inner in causes if isinstance(inner, OSError) and inner.strerror]
    reason = reasons[0] if reasons else type(error).__name__
    detail = getattr(cause, "verify_message", reason).lower()
    what = trouble.what.format(host=host, proxy=proxy, detail=detail)
    failure = NetworkError(f"{where}: {what}", trouble.hint)
    unknown_name = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME
    return _Passing(failure) if trouble.passing and not unknown_name else failure


def _causes(error: Exception) -> Iterator[Exception]:
    """What an exception was made from, innermost first, then the exception itself."""
    for inner in (*error.args, error.__cause__):
        if isinstance(inner, Exception):
            yield from _causes(inner)
    yield error


def _refusal(response: requests.Response, where: str) -> HttpStatusError | _Passing:
    """What to raise for an answer with a status that is no success."""
    body = bytearray()
    with suppress(_Passing, NetworkError):
        for piece in _body(response, where, 0, response.raw.length_remaining, MAX_ANSWER):
            body += piece
            if len(body) >= MAX_EXCERPT:
                break
    status = response.status_code
    refusal = HttpStatusError(
        f"{where}: the server answers {_named(status)}",
        STATUS_HINTS.get(
            status, TRY_LATER if status >= HTTPStatus.INTERNAL_SERVER_ERROR else CHECK_URL
        ),
        status,
        response.headers,
        body[:MAX_EXCERPT].decode(errors="replace"),
    )
    if status not in RETRIED:
        return refusal
    return _Passing(refusal, _retry_after(response.headers.get("Retry-After", "")))


def _named(status: int) -> str:
    return f"{status} {http.client.responses.get(status, '')}".strip()


def _retry_after(value: str) -> float | None:
    """Seconds that the header asks to wait, if it does (RFC 9110 section 10.2.3)."""
    if re.fullmatch("[0-9]+", value):
        return float(value)
    if date := _date(value):
        return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())
    return None


def _validator(headers: Mapping[str, str]) -> str:
    """What to send as If-Range to go on with this answer; empty if nothing is safe.

    That is a strong entity tag or, where there is none of any kind, a modification time that
    is a second older than the answer (RFC 9110 sections 13.1.5 and 8.8.2.2).
    """
    if tag := headers.get("ETag"):
        return tag if tag.startswith('"') else ""
    modified = headers.get("Last-Modified", "")
    changed, sent = _date(modified), _date(headers.get("Date", ""))
    return modified if changed and sent and sent - changed >= timedelta(seconds=1) else ""


def _date(value: str) -> datetime | None:
    """An HTTP-date (RFC 9110 section 5.6.7)."""
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=timezone.utc)


def _body(
    response: requests.Response, where: str, start: int, total: int | None, limit: int
) -> Iterator[bytes]:
    """The bytes of an answer as they come, after the first ``start`` of ``total`` in the file.

    Raises `TooLargeError` if the file has more than ``limit``, `_Passing` if they stop early
    or come too slowly.
    """
    too_large = TooLargeError(
        f"{where}: more than {limit} bytes",
        "Check the URL; no such file is expected to be so large.",
    )
    if total is not None and total > limit:
        raise too_large

    def interrupted(how: str) -> _Passing:
        of_total = "" if total is None else f" of {total}"
        return _Passing(
            NetworkError(f"{where}: the server {how} after {size}{of_total} bytes", TRY_LATER)
        )

    size = mark = start
    deadline = time.monotonic() + READ_TIMEOUT
    while True:
        try:
            # read would wait for all of the chunk, and lose what came of it before an error.
            piece = response.raw.read1(CHUNK, decode_content=False)
        except urllib3.exceptions.ReadTimeoutError as error:
            raise interrupted("stalled") from error
        except urllib3.exceptions.HTTPError as error:
            raise interrupted("stopped") from error
        if not piece:
            break
        size += len(piece)
        if size > limit:
            raise too_large
        if size >= mark + MIN_PROGRESS:
            mark = size
            deadline = time.monotonic() + READ_TIMEOUT
        elif time.monotonic() > deadline:
            raise interrupted("stalled")
        yield piece
    if total is not None and size < total:
        raise interrupted("stopped")


def _joined(pieces: Iterable[bytes]) -> bytes:
    # Not b"".join: it holds all pieces at once, and a server may send single bytes.
    joined = bytearray()
    for piece in pieces:
        joined += piece
    return bytes(joined)


def _copy(url: str, partial: Partial, transfer: Transfer) -> None:
    partial.restart()
    transfer.restart(0, None)
    for piece in _local(url, MAX_SIZE):
        partial.write(piece)
        transfer.advance(len(piece))


def _local(url: str, limit: int) -> Iterator[bytes]:
    """The bytes of a file on this machine (RFC 8089)."""
    where = printable_url(url)
    parts = urlsplit(url)
    path = Path(os.fsdecode(unquote_to_bytes(parts.path)))
    if parts.netloc not in ("", "localhost") or not path.is_absolute():
        raise ConfigError(f"{where} is not on this machine", "Write file:///ABSOLUTE/PATH.")
    try:
        # Before it is opened: that would wait for somebody to write to a fifo.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{where} is not a regular file", "Name a file.")
        left = limit
        with path.open("rb", buffering=0) as file:
            while piece := file.read(CHUNK):
                left -= len(piece)
                if left < 0:
                    raise ConfigError(f"{where} has more than {limit} bytes", "Name a smaller one.")
                yield piece
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise ConfigError(f"{where} cannot be read: {reason}", "Check the path.") from error


def _scheme(url: str) -> str:
    """``http``, ``https`` or ``file``. Raises `ConfigError` if it is no such URL."""
    with suppress(ValueError):
        parts = urlsplit(url)
        web = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        if web or parts.scheme == "file":
            return parts.scheme
    # Where the password ends is not certain in what is no URL.
    raise ConfigError(
        f"{printable_url(re.sub('//.*@', '//', url))} is not a URL that can be downloaded",
        "Write one that begins with https://, http:// or file:///.",
    )


def _origin(request: requests.PreparedRequest) -> tuple[str, str]:
    """Scheme and host, the latter with its port."""
    parts = urlsplit(request.url or "")
    return parts.scheme, parts.netloc.rpartition("@")[2]


def _host(request: requests.PreparedRequest) -> str:
    return _origin(request)[1]


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """An ``auth`` for requests that keeps it from looking for a login of its own."""
    return request


def _offline(url: str, label: str, sha256: str | None) -> NetworkError:
    if not sha256:
        return NetworkError(
            f"{label}: {printable_url(url)} cannot be looked up offline without a checksum",
            "Add its sha256 to fledge.toml, or run without --offline.",
        )
    return NetworkError(
        f"{label}: {printable_url(url)} (sha256 {sha256}) is not in the cache",
        "Run once without --offline.",
    )


def _unexpected(url: str, kind: str) -> NetworkError:
    return NetworkError(
        f"{printable_url(url)}: the answer is not {kind}",
        "Check the URL, and whether a proxy or a login page answers in place of the server.",
    )


def _unsendable(where: str) -> ConfigError:
    return ConfigError(
        f"{where}: a header of the request holds characters that cannot be sent",
        "Check the token or password for line breaks and for letters other than ASCII.",
    )
