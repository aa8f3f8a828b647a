"""Images in Docker and podman, each running as for a user."""

import json
import os
import socket
import tempfile
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from fledge.errors import ConfigError, CorruptError, FledgeError, HostError, NetworkError
from fledge.oci import daemon, layout, reference, registry, transports
from fledge.oci.daemon import NoDaemonImageError
from fledge.oci.image import Image
from fledge.oci.manifest import Platform
from fledge.report import Reporter
from fledge.session import Session
from fledge.store.cache import Cache
from fledge.tree.digest import Digest
from tests.support import daemons
from tests.support.httpd import Answer, Server, content, status
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


@pytest.mark.parametrize("host", ["npipe:////./pipe/docker_engine", "gopher://x", "ssh://nowhere"])
def test_a_host_that_cannot_be(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(NetworkError, match="no sound answer"):
        open_image()


def test_both_answers_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/gone.sock")
    with Server() as server:
        name = reference.parse(f"{server.url('').removeprefix('http://')}/myapp:nope", tmp_path)
        with pytest.raises(registry.NoManifestError) as caught:
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


def test_a_daemon_by_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "ssh://nowhere")
    with pytest.raises(NoDaemonImageError) as caught:
        open_image()
    assert "ssh -NL" in caught.value.hint


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
            with pytest.raises(registry.NoManifestError, match="you may not use") as anywhere:
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
        (status(500), status(404), status(404), NoDaemonImageError, "refuses: 500 Server Error"),
        (content(b"{"), status(404), status(404), NoDaemonImageError, "its answer is not JSON"),
        (answer({}), status(404), status(404), NoDaemonImageError, "not speak the API of Docker"),
        (content(b"{}", cut=1), None, None, NoDaemonImageError, "its answer was cut short"),
        (status(400, TLS_WANTED), None, None, NoDaemonImageError, "DOCKER_TLS_VERIFY"),
        (answer([]), status(404), status(404), NetworkError, "no sound answer"),
        (answer({"ApiVersion": "x"}), status(404), status(404), NetworkError, "no sound answer"),
        (None, status(404), status(404), NoDaemonImageError, "has no image"),
        (None, status(500, b'{"message": "full\x1b"}'), None, NetworkError, "refuses: "),
        (None, content(b"<html>"), None, NetworkError, "no sound answer"),
        (None, answer([]), None, CorruptError, "not a JSON object"),
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
