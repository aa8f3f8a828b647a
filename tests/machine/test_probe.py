"""Asking a server until it answers."""

from __future__ import annotations

import threading

import pytest

from fledge.errors import ConfigError
from fledge.machine import probe as module
from fledge.machine.probe import Probe, parse
from tests.support.httpd import Server, content, status


def asked(url: str, until: object) -> Probe:
    with Probe(parse(url)) as probe:
        probe.start()
        waiting = threading.Event()
        while not (probe.succeeded or probe.answer == until):
            assert not waiting.wait(0.01)
    return probe


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)


def test_answers() -> None:
    with Server() as server:
        server.answers["/well?a=b"] = content(b"hello")
        server.answers["/"] = content(b"hello")
        server.answers["/broken"] = status(503)
        assert asked(server.url("/well?a=b"), None).succeeded
        assert asked(server.url(""), None).succeeded
        assert not asked(server.url("/broken"), "status 503").succeeded
        assert not asked(server.url("/missing"), "status 404").succeeded


def test_no_name_is_looked_up() -> None:
    """localhost may be ::1, where something else than the guest may answer."""
    with Server() as server:
        server.answers["/"] = content(b"hello")
        url = server.url("/").replace("127.0.0.1", "name.invalid")
        assert asked(url, "[Errno -2] Name or service not known").succeeded


def test_a_server_that_appears_later() -> None:
    with Server() as server:
        url = server.url("/")
        server.answers["/"] = status(500)
        with Probe(parse(url)) as probe:
            probe.start()
            waiting = threading.Event()
            while probe.answer != "status 500":
                waiting.wait(0.01)
            server.answers["/"] = content(b"hello")
            while not probe.succeeded:
                waiting.wait(0.01)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "127.0.0.1:80",
        "http://:80/",
        "http://a:x/",
        "http://a/ b",
        "http://a/\r\nX: y",
        "http://[::1/",
    ],
)
def test_no_url(url: str) -> None:
    with pytest.raises(ConfigError, match="is not a URL that can be probed"):
        parse(url)


@pytest.mark.parametrize("url", ["https://127.0.0.1/", "HTTPS://127.0.0.1:8443/"])
def test_tls(url: str) -> None:
    with pytest.raises(ConfigError, match="fledge speaks http to a guest, and not TLS") as refused:
        parse(url)
    assert "--expect" in refused.value.hint
