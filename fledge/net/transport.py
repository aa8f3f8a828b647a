"""Sends HTTP requests: follows redirects, logs in, and explains failures.

Servers are not trusted. The body of a response is read piece by piece, within limits of size and
time.
"""

from __future__ import annotations

import errno
import http.client
import io
import os
import re
import socket
import ssl
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import msgspec
import requests
import urllib3.exceptions
from requests.utils import get_auth_from_url, select_proxy

from fledge._version import __version__
from fledge.errors import ConfigError, HostError, NetworkError
from fledge.host.settings import Settings
from fledge.net import connection, netrc_login
from fledge.net.bodies import decode, is_encoded, words
from fledge.net.certificates import Certificates
from fledge.net.exchange import (
    GET,
    CertificateError,
    Headers,
    HttpStatusError,
    Outgoing,
    TooLargeError,
    TransientError,
    is_loopback,
    printable_url,
)
from fledge.net.pace import Pace
from fledge.tree.regular import IrregularFileError, check_regular

MAX_RESPONSE_SIZE = 8 << 20
"""Maximum bytes in a response that is kept in memory."""
MAX_ERROR_BODY = 4 << 10
"""Maximum bytes kept of the body of an error response."""
CHUNK_SIZE = 256 << 10
"""Maximum bytes read at once."""

MAX_REDIRECTS = 10

RETRIED = frozenset({408, 429, 500, 502, 503, 504})
"""The statuses of transient failures."""
CHECK_URL = "Check the URL."
TRY_LATER = "Try again later, or check the network connection."
SLOW = f"{TRY_LATER} For a link slower than 4 KiB a second, set FLEDGE_MIN_SPEED."
CHECK_PROXY = "Check http_proxy, https_proxy and no_proxy in the environment."
STATUS_HINTS = {
    401: "The server requires a login, or does not accept the one that it got.",
    403: "The server requires a login, or does not allow this with the one that it got.",
    404: "Check the URL; the file may have been moved or removed.",
    407: "Put user name and password of the proxy into http_proxy and https_proxy.",
    410: "Check the URL; the file has been removed.",
    429: "The server got too many requests; try again later.",
}

TUNNEL_STATUS = re.compile(r"Tunnel connection failed: (\d{3})")


class _Body(io.BytesIO):
    """A body that is sent. Raises `TimeoutError` if the server takes it too slowly.

    A file and no bytes: those would have to be on their way within the timeout of one block.
    """

    def __init__(self, data: bytes, pace: Pace) -> None:
        super().__init__(data)
        self._pace = pace
        self._start = time.monotonic()

    def read(self, size: int | None = -1, /) -> bytes:
        seconds = time.monotonic() - self._start
        if seconds > connection.READ_TIMEOUT and self.tell() < self._pace.due(seconds):
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        return super().read(size)


class Transport:
    """Sends requests over connections that are kept for reuse. Threads may share one."""

    def __init__(
        self,
        certificates: Certificates | None = None,
        netrc_files: Sequence[Path] = (),
        pace: Pace | None = None,
    ) -> None:
        """``netrc_files`` are as for `netrc_login.find`. Without a ``pace`` it is the default."""
        self.pace = pace or Pace(Settings().min_speed)
        self._certificates = certificates or Certificates()
        self._netrc_files = netrc_files
        self._settings_by_origin: dict[tuple[str, str], dict[str, Any]] = {}
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, connection.WatchedAdapter(self._certificates))

    def probe(self, url: str) -> int:
        """Send one GET request without a login; return the status, whatever it is.

        Raises the errors of `open`.
        """
        where = printable_url(url)
        with self._send(self._prepare(url, {}, where, find_login=False), where) as response:
            return response.status_code

    @contextmanager
    def open(
        self,
        url: str,
        headers: Headers,
        range_headers: Mapping[str, str],
        accepted: Collection[int],
        outgoing: Outgoing = GET,
    ) -> Iterator[tuple[requests.Response, str]]:
        """Send a request; yield the response, its body unread, and its name for messages.

        ``accepted`` are the statuses that are not errors. A redirect is an error for a request
        that is not GET or HEAD, because what it sends may be secret. Redirects are followed here
        because requests would read the body of a redirect, of any size, and follow it to any
        scheme.

        Raises `TransientError` for a failure that a retry may overcome, `NetworkError` for any
        other failure, `ConfigError` for headers that cannot be sent, `HostError` for unusable CA
        certificates.
        """
        where = printable_url(url)
        request = first = self._first_request(url, headers, range_headers, outgoing)
        login = later_login = None if isinstance(headers, Mapping) else headers
        for _ in range(MAX_REDIRECTS + 1):
            with self._send(request, where, outgoing.is_alone) as response:
                refused = response.status_code == HTTPStatus.UNAUTHORIZED
                if refused and login and request is first and login.renew(response):
                    request = first = self._first_request(url, headers, range_headers, outgoing)
                    login = None
                    continue
                elsewhere = refused and request is not first and later_login
                if elsewhere and (authorization := elsewhere.redirected(response)):
                    request.headers["Authorization"] = authorization
                    later_login = None
                    continue
                if outgoing.method not in ("GET", "HEAD") or not response.is_redirect:
                    if response.status_code not in accepted:
                        raise _refusal(response, where, self.pace)
                    yield response, where
                    return
            request = self._redirect(request, response.headers["Location"], where)
            where = printable_url(url)
            if _host(request) != _host(first):
                where += f" (redirected to {_host(request)})"
        raise NetworkError(f"{where}: more than {MAX_REDIRECTS} redirects", CHECK_URL)

    def _first_request(
        self,
        url: str,
        headers: Headers,
        range_headers: Mapping[str, str],
        outgoing: Outgoing,
    ) -> requests.PreparedRequest:
        """Make the request that is sent before any redirect."""
        own = headers if isinstance(headers, Mapping) else headers.headers()
        given = "Authorization" in requests.structures.CaseInsensitiveDict(own)
        find_login = not given and isinstance(headers, Mapping)
        where = printable_url(url)
        return self._prepare(url, {**own, **range_headers}, where, find_login, outgoing)

    def _prepare(
        self,
        url: str,
        headers: Mapping[str, str],
        where: str,
        find_login: bool,
        outgoing: Outgoing = GET,
    ) -> requests.PreparedRequest:
        """Make a request. With ``find_login``, use the login in the URL or in ~/.netrc, if any."""
        body = outgoing.body
        # Without "identity", ranges and lengths could refer to compressed bytes.
        own = {"Accept-Encoding": "identity", "User-Agent": f"fledge/{__version__}"}
        if outgoing.is_alone:
            own["Connection"] = "close"
        try:
            request = self._session.prepare_request(
                requests.Request(
                    outgoing.method,
                    url,
                    {**own, **headers},
                    # requests would send an empty file in chunks, and not all servers take those.
                    data=_Body(body, self.pace) if body else outgoing.form,
                    auth=no_login,
                )
            )
            if find_login:
                # Of the URL as requests wrote it: parsers disagree on the host of a hostile URL.
                sent = request.url or ""
                login = get_auth_from_url(sent)
                if not any(login):
                    host = urlsplit(sent).hostname or ""
                    login = netrc_login.find(host, self._netrc_files) or login
                request.prepare_auth(login if any(login) else None)
            return request
        except requests.exceptions.InvalidHeader as error:
            raise _unsendable(where) from error
        except ValueError as error:
            raise NetworkError(f"{where}: not a valid URL", CHECK_URL) from error

    def _send(
        self, request: requests.PreparedRequest, where: str, is_alone: bool = False
    ) -> requests.Response:
        url = request.url or ""
        settings = self._settings(request)
        bundle = settings["verify"]
        try:
            if isinstance(bundle, str) and not Path(bundle).is_dir():
                check_regular(Path(bundle))
            # Not session.send, which would read the body of a redirect into memory.
            adapter = self._session.get_adapter(url)
            if is_alone:
                adapter = connection.WatchedAdapter(self._certificates)
            return adapter.send(
                request,
                timeout=(connection.CONNECT_TIMEOUT, connection.READ_TIMEOUT),
                **settings,
            )
        except UnicodeEncodeError as error:
            raise _unsendable(where) from error
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            proxy = printable_url(select_proxy(url, settings["proxies"]) or "")
            raise _no_response(error, where, _host(request), proxy) from error
        except OSError as error:
            problem = f": {error.strerror}" if isinstance(error, IrregularFileError) else ""
            raise HostError(
                f"the CA certificates in {bundle} cannot be used{problem}",
                "Set REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE or SSL_CERT_FILE to a PEM file.",
            ) from error

    def _settings(self, request: requests.PreparedRequest) -> dict[str, Any]:
        """Return the proxies and certificates for the server of a request.

        The environment and the files are read once for each server, because that takes as long as
        a small request itself.
        """
        origin = _origin(request)
        if origin not in self._settings_by_origin:
            url = request.url or ""
            settings: dict[str, Any] = dict(
                self._session.merge_environment_settings(url, {}, True, None, None)
            )
            if is_loopback(urlsplit(url).hostname or ""):
                settings["proxies"] = {}
            if settings["verify"] is True:
                settings["verify"] = self._certificates.trusted() or True
            settings["cert"] = self._certificates.for_host(_host(request)).client
            self._settings_by_origin[origin] = settings
        return self._settings_by_origin[origin]

    def _redirect(
        self, request: requests.PreparedRequest, location: str, where: str
    ) -> requests.PreparedRequest:
        """Make the request for a redirect, with the headers that it may carry (RFC 9110 section
        15.4).
        """
        try:
            url = urljoin(request.url or "", location)
            scheme = urlsplit(url).scheme
        except ValueError:
            scheme = ""
        if scheme not in ("http", "https"):
            raise NetworkError(
                f"{where}: redirects to a URL that is neither http nor https",
                "Check the URL, and whether the server can be trusted.",
            )
        following = self._prepare(
            url,
            request.headers,
            where,
            find_login=False,
            outgoing=Outgoing(request.method or "GET"),
        )
        # Compare the URLs as requests wrote them: parsers disagree on the host of a hostile URL.
        if _origin(following) != _origin(request):
            following.headers.pop("Authorization", None)
        return following


class _FailureKind(msgspec.Struct, frozen=True):
    """The message and hint for a request that got no response because of ``cause``."""

    cause: type[Exception]
    message: str
    """A template with the fields ``host``, ``proxy`` and ``detail``."""
    hint: str
    transient: bool = True
    error: type[NetworkError] = NetworkError


CERTIFICATE_HINTS = {
    9: "Check the clock of this machine, which says {now}.",
    10: "Whoever runs that server must renew it, unless the clock of this machine is wrong: it says"
    " {now}.",
    62: "Check the name of the server in the URL.",
    64: "Write the name of the server in the URL, and not its address.",
}
"""What to do by the reason for which a certificate is refused (``X509_V_ERR_CERT_NOT_YET_VALID``
and others in OpenSSL's x509_vfy.h). For any other, its authority is not known here."""

# The first kind that matches counts. The exception that requests wraps is matched before the one
# from requests, because it is more specific.
FAILURE_KINDS = (
    _FailureKind(
        requests.exceptions.ProxyError, "the proxy {proxy} cannot be used: {detail}", CHECK_PROXY
    ),
    _FailureKind(
        requests.exceptions.InvalidProxyURL,
        "the URL of the proxy is not valid",
        CHECK_PROXY,
        transient=False,
    ),
    _FailureKind(
        requests.exceptions.InvalidSchema,
        "the proxy {proxy} is of a kind that is not supported",
        CHECK_PROXY,
        transient=False,
    ),
    _FailureKind(
        ssl.SSLCertVerificationError,
        "the certificate of {host} cannot be trusted: {detail}",
        "If your network has a CA of its own, install its certificate on this machine, or set"
        " SSL_CERT_FILE or REQUESTS_CA_BUNDLE to a PEM file with it; that of a registry may be in"
        " /etc/docker/certs.d. Otherwise do not trust that server.",
        transient=False,
        error=CertificateError,
    ),
    _FailureKind(
        requests.exceptions.SSLError,
        "no secure connection to {host}",
        "Check the port, and whether the server speaks https.",
    ),
    _FailureKind(
        socket.gaierror,
        "the name of the server {host} cannot be found",
        "Check its spelling and the network connection; a proxy may be needed (https_proxy).",
    ),
    _FailureKind(
        requests.exceptions.ConnectTimeout,
        "{host} did not accept a connection in time",
        TRY_LATER,
    ),
    _FailureKind(requests.exceptions.ReadTimeout, "{host} did not answer in time", TRY_LATER),
    _FailureKind(
        ConnectionRefusedError,
        "{host} refuses the connection",
        "Check the port, and whether the server runs.",
    ),
    _FailureKind(ConnectionError, "{host} closed the connection without an answer", TRY_LATER),
    _FailureKind(
        http.client.HTTPException,
        "{host} does not speak HTTP",
        "Check the port; it may be one for https.",
    ),
    _FailureKind(Exception, "{host} cannot be reached: {detail}", TRY_LATER),
)


def _no_response(
    error: Exception, where: str, host: str, proxy: str
) -> NetworkError | TransientError:
    """Return the error to raise for a request that got no response."""
    if tunnel := TUNNEL_STATUS.search(str(error)):
        status = int(tunnel[1])
        message = f"{where}: the proxy {proxy} answers {status_text(status)}"
        refusal = NetworkError(message, STATUS_HINTS.get(status, CHECK_PROXY))
        return TransientError(refusal) if status in RETRIED else refusal
    causes = list(error_causes(error))
    kind, cause = next(
        (kind, cause) for kind in FAILURE_KINDS for cause in causes if isinstance(cause, kind.cause)
    )
    reason = system_reason(causes) or type(error).__name__
    detail = getattr(cause, "verify_message", reason).lower()
    message = kind.message.format(host=host, proxy=proxy, detail=detail)
    hint = kind.hint
    if isinstance(cause, ssl.SSLCertVerificationError):
        now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        hint = CERTIFICATE_HINTS.get(cause.verify_code, hint).format(now=now)
    failure = kind.error(f"{where}: {message}", hint)
    unknown_name = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME
    return TransientError(failure) if kind.transient and not unknown_name else failure


def error_causes(error: Exception) -> Iterator[Exception]:
    """Yield the exceptions that ``error`` wraps, innermost first, and ``error`` itself last.

    requests and urllib3 pass the exception that they wrap as an argument.
    """
    for inner in (*error.args, error.__cause__):
        if isinstance(inner, Exception):
            yield from error_causes(inner)
    yield error


def system_reason(causes: Iterable[Exception]) -> str:
    """Return the first reason that the operating system gave for one of the causes of an error, in
    lower case; empty if it gave none.
    """
    reasons = (each.strerror for each in causes if isinstance(each, OSError))
    return next(filter(None, reasons), "").lower()


def _refusal(
    response: requests.Response, where: str, pace: Pace
) -> HttpStatusError | TransientError:
    """Return the error to raise for a response with a status that was not accepted."""
    status = response.status_code
    refusal = HttpStatusError(
        f"{where}: the server answers {status_text(status)}",
        STATUS_HINTS.get(
            status, TRY_LATER if status >= HTTPStatus.INTERNAL_SERVER_ERROR else CHECK_URL
        ),
        response,
        refusal_words(response, where, pace),
    )
    if status not in RETRIED:
        return refusal
    return TransientError(refusal, _retry_after(response.headers.get("Retry-After", "")))


def refusal_words(response: requests.Response, where: str, pace: Pace) -> str:
    """Return what a server says in a refusal, safe to print; empty if it says nothing."""
    body = bytearray()
    with suppress(TransientError, NetworkError):
        total = response.raw.length_remaining
        pieces = read_body(response, where, 0, total, MAX_RESPONSE_SIZE, pace)
        for piece in decode(pieces, where) if is_encoded(response.headers) else pieces:
            body += piece
            if len(body) >= MAX_ERROR_BODY:
                break
    return words(bytes(body[:MAX_ERROR_BODY]))


def status_text(status: int) -> str:
    """Return a status with its name: ``404 Not Found``."""
    return f"{status} {http.client.responses.get(status, '')}".strip()


def _retry_after(value: str) -> float | None:
    """Parse a Retry-After header into seconds (RFC 9110 section 10.2.3). None if it is invalid."""
    if re.fullmatch("[0-9]+", value):
        return float(value)
    if date := http_date(value):
        return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())
    return None


def http_date(value: str) -> datetime | None:
    """Parse an HTTP-date (RFC 9110 section 5.6.7). None if it is invalid."""
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=timezone.utc)


def read_body(
    response: requests.Response,
    where: str,
    start: int,
    total: int | None,
    limit: int,
    pace: Pace,
    seconds: float | None = None,
) -> Iterator[bytes]:
    """Yield the bytes of a response as they arrive.

    They follow the first ``start`` bytes of a file of ``total`` bytes (None: unknown). Raises
    `TooLargeError` if the file has more than ``limit`` bytes, `TransientError` if the bytes stop
    early or arrive too slowly for ``pace``, over ``seconds`` or `connection.READ_TIMEOUT`.
    """
    too_large = _too_large(where, limit)
    if total is not None and total > limit:
        raise too_large

    def interrupted(how: str, hint: str = TRY_LATER) -> TransientError:
        of_total = "" if total is None else f" of {total}"
        return TransientError(
            NetworkError(f"{where}: the server {how} after {size}{of_total} bytes", hint)
        )

    seconds = seconds or connection.READ_TIMEOUT
    size = size_at_progress = start
    try:
        with (
            connection.Watchdog(response.raw.fileno(), seconds) as watchdog,
            pace.download(),
        ):
            # read would wait for a full chunk, and lose the bytes that came before an error.
            while piece := response.raw.read1(CHUNK_SIZE, decode_content=False):
                size += len(piece)
                if size > limit:
                    raise too_large
                if size >= size_at_progress + pace.due(seconds):
                    size_at_progress = size
                    watchdog.progress()
                yield piece
    except (TimeoutError, urllib3.exceptions.ReadTimeoutError) as error:
        raise interrupted("stalled", SLOW) from error
    except urllib3.exceptions.HTTPError as error:
        raise interrupted("stopped") from error
    if total is not None and size < total:
        raise interrupted("stopped")


def limited(pieces: Iterable[bytes], where: str, limit: int) -> Iterator[bytes]:
    """Yield pieces of at most ``limit`` bytes together. Raises `TooLargeError`."""
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > limit:
            raise _too_large(where, limit)
        yield piece


def _too_large(where: str, limit: int) -> TooLargeError:
    return TooLargeError(
        f"{where}: more than {limit} bytes",
        "Check the URL; the file is larger than any that fledge expects there.",
    )


def _origin(request: requests.PreparedRequest) -> tuple[str, str]:
    """Return the scheme and the host, with its port if the URL has one."""
    url = request.url or ""
    return urlsplit(url).scheme, connection.url_host(url)


def _host(request: requests.PreparedRequest) -> str:
    return _origin(request)[1]


def no_login(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Leave the request as it is. As its ``auth``, this keeps requests from reading ~/.netrc."""
    return request


def _unsendable(where: str) -> ConfigError:
    return ConfigError(
        f"{where}: a header of the request contains characters that cannot be sent",
        "Check the token or password for line breaks and for letters other than ASCII.",
    )
