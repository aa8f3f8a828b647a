"""One request over HTTP and its answer: redirects, logins, and what went wrong.

No server is trusted. The answer's body is read as it comes, within bounds of size and time.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import string
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Protocol, runtime_checkable
from urllib.parse import quote, urljoin, urlsplit

import msgspec
import requests
import urllib3.exceptions
from requests.utils import select_proxy

from fledge import __version__
from fledge.errors import ConfigError, HostError, NetworkError
from fledge.net import connection

MAX_ANSWER = 8 << 20
"""Bytes in an answer that is held in memory."""
MAX_EXCERPT = 4 << 10
"""Bytes kept of an answer that is an error."""
CHUNK = 256 << 10

MIN_PROGRESS = 64 << 10
"""Bytes that count as progress: fewer in `connection.READ_TIMEOUT` seconds are a stall."""
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

TUNNEL_STATUS = re.compile(r"Tunnel connection failed: (\d{3})")


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


class Passing(Exception):
    """A failure that may be gone at the next try, in ``wait`` seconds if the server says so."""

    def __init__(self, error: NetworkError, wait: float | None = None) -> None:
        super().__init__(error)
        self.error = error
        self.wait = wait


def _new_session() -> requests.Session:
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, connection.Adapter())
    return session


class Transport(msgspec.Struct, frozen=True):
    """Sends requests; connections are kept for the next one. Threads may use one together."""

    _session: requests.Session = msgspec.field(default_factory=_new_session)

    @contextmanager
    def open(
        self,
        url: str,
        headers: Headers,
        range_headers: Mapping[str, str],
        accepted: Collection[int],
    ) -> Iterator[tuple[requests.Response, str]]:
        """Ask for the URL; the answer, its body unread, and how to call it in messages.

        Redirects are followed here: requests would read the body of one, however long, and
        follow it to any scheme. Raises `Passing` for what another try may mend, `NetworkError`
        for any other failure, `ConfigError` for headers that cannot be sent, `HostError` for
        unusable CA certificates.
        """
        where = printable_url(url)
        request = first = self._first(url, headers, range_headers)
        login = headers if isinstance(headers, Login) else None
        for _ in range(MAX_REDIRECTS + 1):
            with self._send(request, where) as response:
                refused = response.status_code == HTTPStatus.UNAUTHORIZED
                if refused and login and request is first and login.renew(response):
                    request, login = self._first(url, headers, range_headers), None
                    continue
                if not response.is_redirect:
                    if response.status_code not in accepted:
                        raise _refusal(response, where)
                    yield response, where
                    return
            request = self._redirected(request, response.headers["Location"], where)
            where = printable_url(url)
            if _host(request) != _host(first):
                where += f" (redirected to {_host(request)})"
        raise NetworkError(f"{where}: more than {MAX_REDIRECTS} redirects", CHECK_URL)

    def _first(
        self, url: str, headers: Headers, range_headers: Mapping[str, str]
    ) -> requests.PreparedRequest:
        """The request before any redirect."""
        own = headers.headers() if isinstance(headers, Login) else headers
        given = "Authorization" in requests.structures.CaseInsensitiveDict(own)
        find_login = not given and not isinstance(headers, Login)
        where = printable_url(url)
        return self._prepare(url, {**own, **range_headers}, where, find_login)

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
                timeout=(connection.CONNECT_TIMEOUT, connection.READ_TIMEOUT),
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


class _Trouble(msgspec.Struct, frozen=True):
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


def _unanswered(error: Exception, where: str, host: str, proxy: str) -> NetworkError | Passing:
    """What to raise for a request that got no answer."""
    if tunnel := TUNNEL_STATUS.search(str(error)):
        status = int(tunnel[1])
        what = f"the proxy {proxy} answers {_named(status)}"
        refusal = NetworkError(f"{where}: {what}", STATUS_HINTS.get(status, CHECK_PROXY))
        return Passing(refusal) if status in RETRIED else refusal
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
    return Passing(failure) if trouble.passing and not unknown_name else failure


def _causes(error: Exception) -> Iterator[Exception]:
    """What an exception was made from, innermost first, then the exception itself."""
    for inner in (*error.args, error.__cause__):
        if isinstance(inner, Exception):
            yield from _causes(inner)
    yield error


def _refusal(response: requests.Response, where: str) -> HttpStatusError | Passing:
    """What to raise for an answer with a status that is no success."""
    body = bytearray()
    with suppress(Passing, NetworkError):
        for piece in read_body(response, where, 0, response.raw.length_remaining, MAX_ANSWER):
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
    return Passing(refusal, _retry_after(response.headers.get("Retry-After", "")))


def _named(status: int) -> str:
    return f"{status} {http.client.responses.get(status, '')}".strip()


def _retry_after(value: str) -> float | None:
    """Seconds that the header asks to wait, if it does (RFC 9110 section 10.2.3)."""
    if re.fullmatch("[0-9]+", value):
        return float(value)
    if date := http_date(value):
        return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())
    return None


def http_date(value: str) -> datetime | None:
    """An HTTP-date (RFC 9110 section 5.6.7)."""
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=timezone.utc)


def read_body(
    response: requests.Response, where: str, start: int, total: int | None, limit: int
) -> Iterator[bytes]:
    """The bytes of an answer as they come, after the first ``start`` of ``total`` in the file.

    Raises `TooLargeError` if the file has more than ``limit``, `Passing` if they stop early
    or come too slowly.
    """
    too_large = TooLargeError(
        f"{where}: more than {limit} bytes",
        "Check the URL; no such file is expected to be so large.",
    )
    if total is not None and total > limit:
        raise too_large

    def interrupted(how: str) -> Passing:
        of_total = "" if total is None else f" of {total}"
        return Passing(
            NetworkError(f"{where}: the server {how} after {size}{of_total} bytes", TRY_LATER)
        )

    size = mark = start
    try:
        with connection.Watch(response.raw.fileno()) as watch:
            # read would wait for all of the chunk, and lose what came of it before an error.
            while piece := response.raw.read1(CHUNK, decode_content=False):
                size += len(piece)
                if size > limit:
                    raise too_large
                if size >= mark + MIN_PROGRESS:
                    mark = size
                    watch.progress()
                yield piece
    except (TimeoutError, urllib3.exceptions.ReadTimeoutError) as error:
        raise interrupted("stalled") from error
    except urllib3.exceptions.HTTPError as error:
        raise interrupted("stopped") from error
    if total is not None and size < total:
        raise interrupted("stopped")


def _origin(request: requests.PreparedRequest) -> tuple[str, str]:
    """Scheme and host, the latter with its port."""
    parts = urlsplit(request.url or "")
    return parts.scheme, parts.netloc.rpartition("@")[2]


def _host(request: requests.PreparedRequest) -> str:
    return _origin(request)[1]


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """An ``auth`` for requests that keeps it from looking for a login of its own."""
    return request


def _unsendable(where: str) -> ConfigError:
    return ConfigError(
        f"{where}: a header of the request holds characters that cannot be sent",
        "Check the token or password for line breaks and for letters other than ASCII.",
    )
