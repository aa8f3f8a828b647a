"""A threaded HTTP server for tests. Each path has its own answer.

    with Server() as server:
        server.answers["/file"] = in_turn(status(503), content(b"..."))
        get(server.url("/file"))
        assert server.seen[-1].headers["Range"] == "bytes=5-"

An answer is a function of the `Exchange`, so a test can write its own. A path without an answer is
404. The server is also a proxy: a client sends a whole URL to a proxy, and that URL is the path of
the answer.
"""

import re
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Request:
    path: str
    headers: Message
    body: bytes = b""
    method: str = "GET"


class Exchange(BaseHTTPRequestHandler):
    """One request. An answer calls `reply`, or writes to ``wfile``."""

    protocol_version = "HTTP/1.1"
    # Without this, the body waits 40 ms for the client's delayed ACK of the head.
    disable_nagle_algorithm = True

    def __init__(self, site: "Server", *args: Any) -> None:
        self.site = site
        super().__init__(*args)

    def do_GET(self) -> None:
        assert "Transfer-Encoding" not in self.headers, "not all servers take a body in chunks"
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.site.seen.append(Request(self.path, self.headers, self.body, self.command))
        self.site.answers.get(self.path, status(404))(self)

    do_CONNECT = do_DELETE = do_HEAD = do_PATCH = do_POST = do_PUT = do_GET

    def reply(
        self,
        code: int,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        """Send an answer. With ``cut``, close the connection after that many bytes of the body."""
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body[:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


class _UnixExchange(Exchange):
    disable_nagle_algorithm = False


Answer = Callable[[Exchange], None]


def status(code: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
    return lambda exchange: exchange.reply(code, body, headers)


def redirect(url: str) -> Answer:
    return status(302, headers={"Location": url})


def content(
    body: bytes, headers: Mapping[str, str] | None = None, cut: int | None = None
) -> Answer:
    """Serve a file, or the part that a Range with a matching If-Range requests."""
    own = headers or {}

    def answer(exchange: Exchange) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", exchange.headers.get("Range", ""))
        condition = exchange.headers.get("If-Range")
        if not wanted or condition not in (None, own.get("ETag"), own.get("Last-Modified")):
            exchange.reply(200, body, own, cut)
        elif (start := int(wanted[1])) >= len(body):
            exchange.reply(416, headers={"Content-Range": f"bytes */{len(body)}"})
        else:
            part = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
            exchange.reply(206, body[start:], {**own, **part}, cut)

    return answer


def in_turn(*answers: Answer) -> Answer:
    """Give each answer once, then the last one forever."""
    left = list(answers)

    def answer(exchange: Exchange) -> None:
        now = left.pop(0) if len(left) > 1 else left[0]
        now(exchange)

    return answer


@dataclass
class Server:
    """Listens on 127.0.0.1 inside a ``with`` block; ``seen`` is what it was asked so far.

    With a ``certificate``, a PEM file that includes the key, it uses TLS. With a ``socket``, it
    listens on that path instead.
    """

    certificate: Path | None = None
    socket: Path | None = None
    answers: dict[str, Answer] = field(default_factory=dict)
    seen: list[Request] = field(default_factory=list)

    def __enter__(self) -> "Server":
        if self.socket:
            self._httpd: _Httpd = _UnixHttpd(self.socket, partial(_UnixExchange, self))
        else:
            self._httpd = _Httpd(("127.0.0.1", 0), partial(Exchange, self))
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            self._httpd.socket = context.wrap_socket(self._httpd.socket, server_side=True)
        threading.Thread(target=self._httpd.serve_forever, args=(0.002,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._httpd.shutdown()
        self._httpd.server_close()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        scheme = "https" if self.certificate else "http"
        return f"{scheme}://{host}:{self._httpd.server_address[1]}{path}"


class _Httpd(ThreadingHTTPServer):
    block_on_close = False

    def handle_error(
        self, request: socket.socket | tuple[bytes, socket.socket], address: Any
    ) -> None:
        # Many tests expect a client to hang up or to refuse the certificate.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, address)


class _UnixHttpd(_Httpd):
    address_family = socket.AF_UNIX

    def __init__(self, path: Path, exchange: Callable[..., Exchange]) -> None:
        super().__init__(str(path), exchange)  # type: ignore[arg-type]  # in the stubs, a port

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own asks for the name of the host

    def get_request(self) -> tuple[socket.socket, Any]:
        return super().get_request()[0], ("", 0)
