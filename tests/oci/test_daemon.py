"""Images in Docker and podman, each running as for a user."""

import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from fledge.errors import ConfigError, CorruptError, FledgeError, HostError, NetworkError
from fledge.oci import archive, daemon, layout, reference, transports
from fledge.oci.daemon import NoDaemonImageError
from fledge.oci.image import Image
from fledge.oci.manifest import Platform
from fledge.oci.repository import NoManifestError
from fledge.report import Reporter, Transfer
from fledge.session import Session
from fledge.store.cache import Cache
from fledge.tree.digest import Digest
from tests.support import daemons
from tests.support.httpd import Answer, Exchange, Server, content, redirect, status
from tests.support.layouts import AMD64, make_layout, verified
from tests.support.tars import file, pack

ARM64 = Platform("linux", "arm64")
HELLO = reference.Name("example.com", "hello", "v1")
ARCHIVE = pack(file("x"))


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user without Docker settings, and no running service."""
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setattr(daemon, "SYSTEM_SOCKETS", ())


class Notes(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def open_image(name: reference.Name = HELLO, platform: Platform = AMD64) -> Image:
    return daemon.open_image(name, platform, Session.default())


@pytest.mark.real
@pytest.mark.parametrize("service", [daemons.dockerd, daemons.podman])
def test_an_image_of_a_real_service(
    service: Callable[[], AbstractContextManager[Path]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    cache = Session.default().cache
    source = make_layout(tmp_path / "layout")
    want = verified(layout.open_image(source, None, AMD64), Cache(tmp_path / "other cache"))
    with service() as socket:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{socket}")
        with pytest.raises(NoDaemonImageError, match="has no image"):
            open_image()
        with pytest.raises(NetworkError, match=r"offline; the Docker daemon at .* has no image"):
            transports.open_image(HELLO, AMD64, Session.default(offline=True))
        put = f"docker-daemon:{HELLO}", "--dest-daemon-host", f"unix://{socket}"
        daemons.skopeo_copy(f"oci:{source}:hello", *put)
        assert verified(open_image(), cache) == want
        with pytest.raises(ConfigError, match="for linux/amd64, not for linux/arm64"):
            open_image(platform=ARM64)
        again = open_image()
        image_id = Digest.of(again.config).hex
        for text in (f"sha256:{image_id}", image_id, image_id[:12]):
            named = reference.parse(f"docker-daemon:{text}", tmp_path)
            assert verified(transports.open_image(named, AMD64, Session.default()), cache) == want
    # Cached layers do not need the daemon any more.
    assert verified(again, cache) == want
    with pytest.raises(NoDaemonImageError, match="no sound answer"):
        open_image()


def test_without_a_daemon() -> None:
    with pytest.raises(NoDaemonImageError, match="no Docker daemon listens"):
        open_image()
    with pytest.raises(NetworkError, match="offline; no Docker daemon listens"):
        transports.open_image(HELLO, AMD64, Session.default(offline=True))


@pytest.mark.real
def test_image_that_podman_has_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "Containerfile").write_text("FROM scratch\nCOPY Containerfile /\n")
    with daemons.podman() as socket:
        url = f"unix://{socket}"
        build = ("--remote", "--url", url, "build", "--quiet", "--tag", "kestrel-test:1")
        daemons.run("podman", *build, str(tmp_path))
        monkeypatch.setenv("DOCKER_HOST", url)
        notes = Notes()
        session = Session.default(reporter=notes)
        architecture = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
        named = reference.parse("kestrel-test:1", tmp_path)
        image = transports.open_image(named, Platform("linux", architecture), session)
        assert len(image.layers) == 1
        assert "is localhost/kestrel-test:1 of the daemon" in notes.notes[0]


@pytest.mark.parametrize("host", ["npipe:////./pipe/docker_engine", "gopher://x"])
def test_a_host_that_cannot_be(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(NetworkError, match="no sound answer"):
        open_image()


def test_both_answers_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/gone.sock")
    with Server() as server:
        name = reference.parse(f"{server.url('').removeprefix('http://')}/myapp:nope", tmp_path)
        with pytest.raises(NoManifestError) as caught:
            transports.open_image(name, AMD64, Session.default())
    assert caught.value.message.endswith(
        f"/myapp has no 'nope'; no sound answer from the Docker daemon at"
        f" unix://{tmp_path}/gone.sock: no such file or directory"
    )


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"", "it closed the connection without an answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "it does not speak HTTP"),
    ],
)
def test_a_socket_of_another_service(
    sent: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer_once() -> None:
        with listener.accept()[0] as client:
            client.recv(1 << 16)
            client.sendall(sent)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        thread = threading.Thread(target=answer_once)
        thread.start()
        with pytest.raises(NoDaemonImageError) as caught:
            open_image()
        thread.join()
    assert caught.value.message.endswith(f": {reason}")


def test_a_context_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONTEXT", "nowhere")
    with pytest.raises(ConfigError, match="context 'nowhere'"):
        open_image()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_a_socket_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import docker.api.client  # noqa: F401, PLC0415 - while root can read Python

    tmp_path.chmod(0o700)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    with Server() as server, tempfile.TemporaryDirectory() as cache:
        Path(cache).chmod(0o777)
        environment = {**os.environ, "FLEDGE_CACHE_DIR": f"{cache}/fledge"}
        session = Session.default(environment=environment)
        host = server.url("").removeprefix("http://")
        os.seteuid(65534)
        try:
            with pytest.raises(HostError, match="you may not use the Docker daemon at") as caught:
                open_image()
            with pytest.raises(NoManifestError, match="you may not use") as anywhere:
                name = reference.parse(f"{host}/app", tmp_path)
                transports.open_image(name, AMD64, session)
        finally:
            os.seteuid(0)
    assert "group" in caught.value.hint
    assert anywhere.value.hint.endswith(caught.value.hint)


TLS_WANTED = b"Client sent an HTTP request to an HTTPS server.\n"
ID = "ab" * 32
INSPECTED = {"Id": f"sha256:{ID}", "Os": "linux", "Architecture": "amd64"}


def answer(value: object) -> Answer:
    return content(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("version", "inspected", "export", "error", "message"),
    [
        (status(500), status(404), status(404), NoDaemonImageError, "refuses: 500 Internal"),
        (content(b"{"), status(404), status(404), NoDaemonImageError, "/version: is not JSON"),
        (answer({}), status(404), status(404), NoDaemonImageError, "ApiVersion is not"),
        (content(b"{}", cut=1), None, None, NoDaemonImageError, "stopped after 1 of 2 bytes"),
        (status(400, TLS_WANTED), None, None, NoDaemonImageError, "DOCKER_TLS_VERIFY"),
        (answer([]), status(404), status(404), NetworkError, "no sound answer"),
        (answer({"ApiVersion": "x"}), status(404), status(404), NetworkError, "no sound answer"),
        (None, status(404), status(404), NoDaemonImageError, "has no image"),
        (None, status(500, b'{"message": "full\x1b"}'), None, NetworkError, "refuses: "),
        (None, content(b"<html>"), None, NetworkError, "no sound answer"),
        (None, answer([]), None, NetworkError, "not a JSON object"),
        (None, answer({**INSPECTED, "Id": "../x"}), None, CorruptError, "not a sha256 digest"),
        (None, answer({**INSPECTED, "Os": "windows"}), None, ConfigError, "windows/amd64"),
        (None, answer(INSPECTED), status(500), NetworkError, "refuses: "),
        (None, answer(INSPECTED), content(ARCHIVE, cut=700), NetworkError, "no sound answer"),
        (None, answer(INSPECTED), content(b"no tar" * 200), CorruptError, "docker-daemon:"),
        (None, answer(INSPECTED), content(ARCHIVE), ConfigError, "has no manifest.json"),
    ],
)
def test_a_daemon_that_misbehaves(
    *,
    version: Answer | None,
    inspected: Answer | None,
    export: Answer | None,
    error: type[FledgeError],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Server() as server:
        monkeypatch.setenv("DOCKER_HOST", server.url("").replace("http:", "tcp:"))
        server.answers["/version"] = version or answer({"ApiVersion": "1.41"})
        server.answers[f"/v1.41/images/{HELLO}/json"] = inspected or status(404)
        server.answers[f"/v1.41/images/sha256:{ID}/get"] = export or status(404)
        with pytest.raises(error) as caught:
            open_image()
    assert message in str(caught.value)
    assert caught.value.message.isprintable()


def test_netrc_and_proxies_are_not_for_a_daemon_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("default login alice password wonder")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with Server() as server:
        monkeypatch.setenv("DOCKER_HOST", server.url("").replace("http:", "tcp:"))
        monkeypatch.setenv("all_proxy", "http://127.0.0.1:1")
        server.answers["/version"] = answer({"ApiVersion": "1.41"})
        with pytest.raises(NoDaemonImageError, match="has no image"):
            open_image()
        assert [request.headers["Authorization"] for request in server.seen] == [None, None]


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A daemon on a socket, sound so far."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "docker.sock"
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        with Server(socket=path) as server:
            server.answers["/version"] = answer({"ApiVersion": "1.41"})
            server.answers[INSPECT] = answer(INSPECTED)
            server.answers[EXPORT] = content(ARCHIVE)
            yield server


INSPECT = f"/v1.41/images/{HELLO}/json"
EXPORT = f"/v1.41/images/sha256:{ID}/get"


class Endless:
    """An answer without an end. ``sent`` is how much of it was taken."""

    def __init__(self, code: int, piece: bytes, pause: float = 0) -> None:
        self.sent = 0
        self._code, self._piece, self._pause = code, piece, pause

    def __call__(self, exchange: Exchange) -> None:
        exchange.close_connection = True
        exchange.wfile.write(b"HTTP/1.1 %d X\r\n\r\n" % self._code)
        while self.sent < 256 << 20:
            exchange.wfile.write(self._piece)
            self.sent += len(self._piece)
            time.sleep(self._pause)


@pytest.mark.parametrize("path", ["/version", INSPECT, EXPORT])
@pytest.mark.parametrize("code", [200, 400, 500])
def test_endless_answers(
    hostile: Server, monkeypatch: pytest.MonkeyPatch, path: str, code: int
) -> None:
    monkeypatch.setattr(archive, "MAX_ARCHIVE_SIZE", 4 << 20)
    hostile.answers[path] = endless = Endless(code, b" " * (1 << 16))
    wanted = "more than 4194304 bytes" if code == 200 else f"{code} "
    with pytest.raises(NetworkError, match=wanted):
        open_image()
    assert endless.sent < 16 << 20


@pytest.mark.parametrize("path", ["/version", INSPECT])
@pytest.mark.parametrize("code", [200, 500])
@pytest.mark.parametrize("start", [b"[", b'{"a":'])
def test_nested_answers(hostile: Server, path: str, code: int, start: bytes) -> None:
    hostile.answers[path] = status(code, start * 200_000)
    with pytest.raises(NetworkError, match=r"no sound answer|refuses"):
        open_image()


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/version", INSPECT, EXPORT])
def test_answers_that_trickle(hostile: Server, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(daemon, "ANSWER_TIMEOUT", 0.5)
    monkeypatch.setattr(daemon, "EXPORT_TIMEOUT", 0.5)
    hostile.answers[path] = Endless(200, b" ", 0.01)
    with pytest.raises(NetworkError, match="the server stalled"):
        open_image()


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/version", INSPECT, EXPORT])
def test_heads_that_trickle(hostile: Server, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(daemon, "ANSWER_TIMEOUT", 0.5)
    monkeypatch.setattr(daemon, "EXPORT_TIMEOUT", 0.5)

    def head(exchange: Exchange) -> None:
        exchange.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        Endless(200, b"x", 0.01)(exchange)

    hostile.answers[path] = head
    with pytest.raises(NetworkError, match="no sound answer"):
        open_image()


@pytest.mark.parametrize("path", ["/version", INSPECT, EXPORT])
def test_redirects_are_not_followed(hostile: Server, path: str) -> None:
    with Server() as other:
        hostile.answers[path] = redirect(other.url("/secret"))
        with pytest.raises(NetworkError, match="302 Found"):
            open_image()
        assert other.seen == []


def test_the_total_of_an_export(hostile: Server) -> None:
    totals = []

    class Totals(Transfer):
        def restart(self, done: int, total: int | None) -> None:
            totals.append(total)

    class Recorder(Reporter):
        @contextmanager
        def transfer(self, label: str) -> Iterator[Transfer]:
            yield Totals()

    for size, total in ((4321, 4321), (None, None)):
        hostile.answers[INSPECT] = answer({**INSPECTED, "Size": size})
        with pytest.raises(ConfigError, match=r"manifest\.json"):
            daemon.open_image(HELLO, AMD64, Session.default(reporter=Recorder()))
        assert totals.pop() == total


def test_no_network_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as server:
        url = server.url("").replace("http:", "tcp:")
        for host in (url, "ssh://example.com"):
            monkeypatch.setenv("DOCKER_HOST", host)
            with pytest.raises(NetworkError, match=f"the Docker daemon at {host} is not asked"):
                daemon.open_image(HELLO, AMD64, Session.default(offline=True))
        assert server.seen == []


def test_a_socket_is_asked_offline(hostile: Server) -> None:
    hostile.answers[INSPECT] = status(404)
    with pytest.raises(NetworkError, match="has no image"):
        daemon.open_image(HELLO, AMD64, Session.default(offline=True))
    assert hostile.seen


SSH = """\
#!{python}
import os, socket, sys, threading
assert sys.argv[1:] == ["-l", "me", "-p", "2222", "--", "far", "docker system dial-stdio"]
daemon = socket.socket(socket.AF_UNIX)
daemon.connect("{socket}")

def copy(read, write):
    while piece := read(65536):
        write(piece)

threading.Thread(
    target=copy, args=(lambda size: os.read(0, size), daemon.sendall), daemon=True
).start()
copy(daemon.recv, lambda piece: os.write(1, piece))
"""


def test_a_daemon_over_ssh(
    hostile: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a program in place of ssh, which talks to the daemon as the other machine does."""
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(SSH.format(python=sys.executable, socket=hostile.socket))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_HOST", "ssh://me@far:2222")
    with pytest.raises(ConfigError, match=r"manifest\.json"):
        open_image()
    monkeypatch.setenv("DOCKER_HOST", "ssh://nowhere")
    with pytest.raises(NetworkError, match="no sound answer"):
        open_image()
