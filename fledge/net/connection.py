"""HTTP connections on which a slow server cannot keep a build waiting forever.

A socket's timeout is not enough: it starts again with every byte, and http.client reads interim
responses, header lines, chunk sizes and trailers for as long as the server sends them.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import urllib3
from requests import PreparedRequest
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from fledge.net.certificates import Certificates

CONNECT_TIMEOUT = 15.0
"""Seconds in which a server must accept a connection."""
READ_TIMEOUT = 60.0
"""Seconds in which a server must send all headers, and over which its speed is measured then."""


def url_host(url: str) -> str:
    """Return the host of a URL, with its port if the URL has one."""
    return urlsplit(url).netloc.rpartition("@")[2]


class Watchdog:
    """Shuts a connection down when no progress was reported for a number of seconds.

    ``descriptor`` is the connection's socket. A read that waits for the socket then ends, and
    the ``with`` block raises `TimeoutError` in place of the error that the read raised.
    """

    def __init__(self, descriptor: int, seconds: float) -> None:
        self._seconds = seconds
        # Duplicated, because the connection may be closed and its descriptor reused.
        self._socket = socket.socket(fileno=os.dup(descriptor))
        self._expired = False
        self.progress()

    def __enter__(self) -> Watchdog:
        _clock.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        _clock.remove(self)
        self._socket.close()
        if self._expired and (error is None or isinstance(error, Exception)):
            raise TimeoutError from error

    def progress(self) -> None:
        """Restart the timeout."""
        self.deadline = time.monotonic() + self._seconds

    def expire(self) -> None:
        """Shut the connection down."""
        self._expired = True
        with suppress(OSError):  # the server closed the connection first
            self._socket.shutdown(socket.SHUT_RDWR)


class _Clock:
    """A thread that expires watchdogs. All share it: to start a thread for each request would take
    as long as a small request itself.
    """

    IDLE = 1.0
    """Seconds without a watchdog after which the thread ends."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watchdogs: set[Watchdog] = set()
        self._thread: threading.Thread | None = None
        self._wakes = 0.0

    def add(self, watchdog: Watchdog) -> None:
        """Expire a watchdog when its time has come."""
        with self._changed:
            self._watchdogs.add(watchdog)
            # A process that was forked has not got the thread.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
            elif watchdog.deadline < self._wakes:
                self._changed.notify()

    def remove(self, watchdog: Watchdog) -> None:
        """Leave a watchdog alone from now on."""
        with self._changed:
            self._watchdogs.discard(watchdog)

    def _run(self) -> None:
        was_idle = False
        with self._changed:
            while self._watchdogs or not was_idle:
                was_idle = not self._watchdogs
                now = time.monotonic()
                for each in [each for each in self._watchdogs if each.deadline <= now]:
                    each.expire()
                    self._watchdogs.remove(each)
                deadlines = (each.deadline for each in self._watchdogs)
                self._wakes = min(deadlines, default=now + self.IDLE)
                self._changed.wait(max(0, self._wakes - now))
            self._thread = None


_clock = _Clock()


# urllib3 sets the timeout of a connection to that of the request before it reads the response.


class _Connection(HTTPConnection):
    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as in urllib3
        with Watchdog(self.sock.fileno(), self.timeout or READ_TIMEOUT):
            return super().getresponse()


class _SecureConnection(HTTPSConnection):
    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as in urllib3
        with Watchdog(self.sock.fileno(), self.timeout or READ_TIMEOUT):
            return super().getresponse()


class _SocketConnection(_Connection):
    """A connection through a socket that ``connect`` opens."""

    def __init__(self, *args: Any, connect: Callable[[], socket.socket], **options: Any) -> None:
        super().__init__(*args, **options)
        self._connect = connect

    def _new_conn(self) -> socket.socket:
        opened = self._connect()
        opened.settimeout(CONNECT_TIMEOUT)
        return opened


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class WatchedAdapter(HTTPAdapter):
    """A transport adapter for requests that sets a watchdog on the headers of each response.

    It trusts the authorities that ``certificates`` has for a host besides the general ones.
    """

    def __init__(self, certificates: Certificates) -> None:
        self._certificates = certificates
        super().__init__()

    def build_connection_pool_key_attributes(
        self, request: PreparedRequest, *args: Any, **options: Any
    ) -> Any:
        """Return what connections must have in common to be in one pool."""
        host, tls = super().build_connection_pool_key_attributes(request, *args, **options)
        if authorities := self._certificates.for_host(url_host(request.url or "")).authorities:
            return host, {**tls, "ca_cert_data": authorities}
        return host, tls

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Make the pool of direct connections."""
        super().init_poolmanager(*args, **options)
        _watch(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **options: Any) -> urllib3.ProxyManager:
        """Return the pool of connections through a proxy."""
        manager: urllib3.ProxyManager = super().proxy_manager_for(proxy, **options)
        if not proxy.lower().startswith("socks"):  # SOCKS pools have their own connection classes
            _watch(manager)
        return manager


class SocketAdapter(HTTPAdapter):
    """A transport adapter for requests that sends every request through a socket that ``connect``
    opens, with the same watchdog.
    """

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        super().__init__()
        self._pool = urllib3.HTTPConnectionPool("localhost", connect=connect)
        self._pool.ConnectionCls = _SocketConnection

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
        """Return the pool of connections, whatever the URL."""
        return self._pool

    def request_url(self, request: PreparedRequest, proxies: Any) -> str:
        """Return the path: no proxy is asked."""
        return request.path_url


def _watch(manager: urllib3.PoolManager) -> None:
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
