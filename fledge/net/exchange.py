"""What a request to a server asks for, and the errors that come of it.

Importing this module loads no HTTP library: builds that find everything in the cache need none.
"""

from __future__ import annotations

import ipaddress
import re
import string
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

import msgspec

from fledge.errors import NetworkError

if TYPE_CHECKING:
    import requests


class HttpStatusError(NetworkError):
    """The server answered with a status that is not a success.

    ``words`` is what the server says in the body, safe to print; empty if it says nothing. The
    message contains it. ``had_password`` is whether the request had a user name and password.
    """

    def __init__(self, message: str, hint: str, response: requests.Response, words: str) -> None:
        super().__init__(f"{message}, and says: {words}" if words else message, hint)
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.words = words
        self.had_password = response.request.headers.get("Authorization", "").startswith("Basic ")


class TooLargeError(NetworkError):
    """The server sent more bytes than the caller accepts."""


class Login(Protocol):
    """Makes the headers of requests that need a login. Threads may share one."""

    def headers(self) -> Mapping[str, str]:
        """Return the headers for the next request."""

    def renew(self, refusal: requests.Response) -> bool:
        """Log in again after a 401 response. Return whether to repeat the request.

        Raises `FledgeError`.
        """

    def redirected(self, refusal: requests.Response) -> str:
        """Return the ``Authorization`` header with which to repeat a request to which the server
        has redirected, after a 401 response; empty if there is none.

        It must not contain anything that is meant for the first server. Raises `FledgeError`.
        """


Headers = Mapping[str, str] | Login
"""The headers of a request, or the `Login` that makes them."""


class Outgoing(msgspec.Struct, frozen=True):
    """What a request asks for, and what it sends in its body. A GET request sends nothing."""

    method: str = "GET"
    form: Mapping[str, str] | None = None
    """Fields to send."""
    body: bytes | None = None
    """The body; None: no body, or that of the form."""
    is_alone: bool = False
    """Whether to open a connection for this request only."""


GET = Outgoing()


class TransientError(Exception):
    """A failure that a retry may overcome.

    ``error`` is the error to raise if no retry succeeds. ``wait`` is the number of seconds that
    the server asks the client to wait, or None if it does not say.
    """

    def __init__(self, error: NetworkError, wait: float | None = None) -> None:
        super().__init__(error)
        self.error = error
        self.wait = wait


class CertificateError(NetworkError):
    """The server's certificate cannot be trusted."""


def is_loopback(host: str) -> bool:
    """Return whether a host, without a port, is this machine. Proxies are not for it, as in Go."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def printable_url(url: str) -> str:
    """Make a URL safe to print: without user name, password and control characters."""
    return quote(re.sub(r"//[^/?#]*@", "//", url), safe=string.punctuation)
