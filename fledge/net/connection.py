"""Connections whose server cannot keep a build waiting for ever.

A timeout of a socket begins anew with every byte, and http.client reads interim answers,
lines of headers, chunk sizes and trailers for as long as there are more.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

CONNECT_TIMEOUT = 15.0
READ_TIMEOUT = 60.0
"""Seconds in which a server must send all headers, and then some progress again and again."""


class Watch:
    """Cuts a connection off when no progress was reported for `READ_TIMEOUT` seconds.

    ``descriptor`` is that of its socket. Whoever reads from it comes to an end then, and
    leaving the block raises `TimeoutError` in place of what that led to.
    """

    def __init__(self, descriptor: int) -> None:
        # One of its own: the connection may be closed, and its number used again, meanwhile.
        self._socket = socket.socket(fileno=os.dup(descriptor))
        self._changed = threading.Condition()
        self._left = self._expired = False
        self.progress()

    def __enter__(self) -> Watch:
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        with self._changed:
            self._left = True
            self._changed.notify()
        if self._expired and (error is None or isinstance(error, Exception)):
            raise TimeoutError from error

    def progress(self) -> None:
        """Let the time begin anew."""
        self._deadline = time.monotonic() + READ_TIMEOUT

    def _run(self) -> None:
        with self._socket, self._changed:
            while not self._left and (seconds := self._deadline - time.monotonic()) > 0:
                self._changed.wait(seconds)
            if not self._left:
                self._expired = True
                with suppress(OSError):  # the server was faster
                    self._socket.shutdown(socket.SHUT_RDWR)


class _Connection(HTTPConnection):
    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3 has it
        with Watch(self.sock.fileno()):
            return super().getresponse()


class _SecureConnection(HTTPSConnection):
    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3 has it
        with Watch(self.sock.fileno()):
            return super().getresponse()


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class Adapter(HTTPAdapter):
    """What makes a session of requests watch the headers of each answer."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        _watch(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **options: Any) -> urllib3.ProxyManager:
        manager: urllib3.ProxyManager = super().proxy_manager_for(proxy, **options)
        if not proxy.lower().startswith("socks"):  # they have connections of their own
            _watch(manager)
        return manager


def _watch(manager: urllib3.PoolManager) -> None:
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
