"""The agent from a release, a file or a URL."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from fledge.errors import CorruptError, NetworkError
from fledge.report import Reporter
from fledge.session import Session
from fledge.sources import agent
from fledge.sources.agent import Agent, HttpAgent, LocalAgent, ReleaseAgent
from fledge.tree.digest import Digest
from tests.support import daemons, project
from tests.support.httpd import Answer, Server, content, redirect, status
from tests.support.images import sha256
from tests.support.releases import KESTREL, KESTREL_ARM64, RELEASES, publish
from tests.support.tars import file, pack


def fetch(what: Agent, architecture: str = "amd64", *, offline: bool = False) -> agent.FetchedAgent:
    return agent.fetch(what, architecture, Session.default(offline=offline))


def asked(server: Server) -> list[str]:
    return [request.path for request in server.seen]


@pytest.mark.parametrize("version", ["latest", "v1.2.3"])
def test_release(github: Server, version: str) -> None:
    publish(github, {"kestrel": KESTREL, "kestrel-linux-arm64": KESTREL_ARM64})
    found = fetch(ReleaseAgent(version=version))
    assert found.content.path.read_bytes() == KESTREL
    assert found.content.digest.hex == sha256(KESTREL)
    assert found.version == "v1.2.3"
    assert found.url == github.url("/download/v1.2.3/kestrel")


@pytest.mark.parametrize(
    "name", ["kestrel-linux-arm64", "kestrel_linux_aarch64", "kestrel-arm64", "kestrel-aarch64"]
)
def test_release_for_another_architecture(github: Server, name: str) -> None:
    publish(github, {"kestrel": KESTREL, name: KESTREL_ARM64})
    assert fetch(ReleaseAgent(), "arm64").content.digest.hex == sha256(KESTREL_ARM64)


def test_release_without_asset_for_the_architecture(github: Server) -> None:
    publish(github, {"kestrel": KESTREL})
    with pytest.raises(
        NetworkError, match=r"v1\.2\.3 .* no asset for arm64; its assets: .*kestrel"
    ):
        fetch(ReleaseAgent(), "arm64")


def test_release_is_downloaded_once(github: Server) -> None:
    publish(github, {"kestrel": KESTREL})
    fetch(ReleaseAgent())
    fetch(ReleaseAgent())
    assert asked(github).count("/download/v1.2.3/kestrel") == 1


def test_release_without_checksums(github: Server) -> None:
    publish(github, {"kestrel": KESTREL}, checksums=None)
    assert fetch(ReleaseAgent()).content.digest.hex == sha256(KESTREL)


def test_a_release_without_checksums_is_told(github: Server) -> None:
    publish(github, {"kestrel": KESTREL}, checksums=None)
    notes: list[str] = []

    class Notes(Reporter):
        def note(self, message: str) -> None:
            notes.append(message)

    session = Session.default(reporter=Notes())
    agent.fetch(ReleaseAgent(), "amd64", session)
    assert "has no checksums.txt: the agent is not verified" in notes[0]
    agent.fetch(ReleaseAgent(checksum=Digest.of(KESTREL)), "amd64", session)
    assert len(notes) == 1


def test_release_with_other_bytes_than_its_checksums(github: Server) -> None:
    publish(github, {"kestrel": KESTREL}, checksums=f"{sha256(b'other')}  kestrel\n")
    with pytest.raises(CorruptError, match=sha256(b"other")):
        fetch(ReleaseAgent())


@pytest.mark.parametrize(
    "checksums", [f"{sha256(KESTREL)}  kestrel-arm64\n", "kestrel\n", f"abc  kestrel\n{'0' * 80}\n"]
)
def test_release_whose_checksums_lack_the_agent(github: Server, checksums: str) -> None:
    publish(github, {"kestrel": KESTREL}, checksums=checksums)
    with pytest.raises(CorruptError, match="has no checksum of kestrel"):
        fetch(ReleaseAgent())


def test_binary_mode_checksums(github: Server) -> None:
    publish(github, {"kestrel": KESTREL}, checksums=f"{sha256(KESTREL).upper()} *kestrel\n")
    assert fetch(ReleaseAgent()).content.digest.hex == sha256(KESTREL)


def test_checksum_contradicts_those_of_the_release(github: Server) -> None:
    publish(github, {"kestrel": KESTREL})
    with pytest.raises(CorruptError, match=r"in its checksums\.txt, but .* in \[agent\] checksum"):
        fetch(ReleaseAgent(checksum=Digest.of(b"other")))


def test_checksum_holds_for_a_release_without_checksums(github: Server) -> None:
    publish(github, {"kestrel": KESTREL}, checksums=None)
    with pytest.raises(CorruptError, match=sha256(b"other")):
        fetch(ReleaseAgent(checksum=Digest.of(b"other")))


def test_pinned_release_needs_no_network_twice(github: Server) -> None:
    publish(github, {"kestrel": KESTREL})
    pinned = ReleaseAgent(version="v1.2.3", checksum=Digest.of(KESTREL))
    fetch(pinned)
    before = len(github.seen)
    assert fetch(pinned, offline=True).content.digest.hex == sha256(KESTREL)
    assert len(github.seen) == before


def test_release_offline(github: Server) -> None:
    with pytest.raises(NetworkError, match="offline"):
        fetch(ReleaseAgent(), offline=True)
    assert github.seen == []


def test_token_goes_to_the_api_only(github: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "secret")
    publish(github, {"kestrel": KESTREL})
    with Server() as store:
        store.answers["/blob"] = content(KESTREL)
        there = store.url("/blob", host="localhost")
        github.answers["/download/v1.2.3/kestrel"] = redirect(there)
        fetch(ReleaseAgent())
        sent = {request.path: request.headers["Authorization"] for request in github.seen}
        assert sent.pop(f"{RELEASES}/latest") == "Bearer secret"
        assert set(sent.values()) == {None}
        assert [request.headers["Authorization"] for request in store.seen] == [None]


def test_token_is_not_sent_in_the_clear(github: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "secret")
    monkeypatch.setenv("FLEDGE_GITHUB_API", "http://github.example")
    monkeypatch.setenv("http_proxy", github.url(""))
    with pytest.raises(NetworkError):
        fetch(ReleaseAgent())
    assert [request.headers["Authorization"] for request in github.seen] == [None]


@pytest.mark.parametrize(
    ("answer", "message", "hint"),
    [
        (status(404), r"kestrel has no release 'v9'", "releases"),
        (status(401), "the token in GITHUB_TOKEN", "Renew"),
        (
            status(403, headers={"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "86400"}),
            r"rate limit .* until 1970-01-02 00:00 UTC",
            "Set GITHUB_TOKEN",
        ),
        (status(403, headers={"X-RateLimit-Remaining": "0"}), "rate limit", "Set GITHUB_TOKEN"),
        (status(429, headers={"Retry-After": "1"}), "rate limit", "Set GITHUB_TOKEN"),
        (status(403), "403", ""),
        (status(500), "500", ""),
    ],
    ids=["not found", "bad token", "limit", "limit without end", "429", "forbidden", "broken"],
)
def test_refusals_are_explained(github: Server, answer: Answer, message: str, hint: str) -> None:
    github.answers[f"{RELEASES}/tags/v9"] = answer
    with pytest.raises(NetworkError, match=message) as caught:
        fetch(ReleaseAgent(version="v9"))
    assert hint in caught.value.hint
    assert RELEASES in str(caught.value)


@pytest.mark.parametrize(
    "body",
    ["[]", "{}", "null", '{"tag_name": "v1"}', '{"tag_name": "v1", "assets": [1]}', "<html>"],
)
def test_answers_that_are_no_release(github: Server, body: str) -> None:
    github.answers[f"{RELEASES}/latest"] = status(200, body.encode())
    with pytest.raises((CorruptError, NetworkError)) as caught:
        fetch(ReleaseAgent())
    assert RELEASES in str(caught.value)


def test_tag_is_quoted(github: Server) -> None:
    with pytest.raises(NetworkError):
        fetch(ReleaseAgent(version="../../x?y"))
    assert asked(github)[0] == f"{RELEASES}/tags/..%2F..%2Fx%3Fy"


@pytest.mark.parametrize(
    ("tags", "hint"),
    [
        (["v1.3.0", "v1.2.3"], "Did you mean v1.2.3? https://github.com/"),
        (["v1.2.4", "v1.2.2"], "There are v1.2.4, v1.2.2. https://github.com/"),
        ([], "https://github.com/"),
        (None, "https://github.com/"),
        ([7], "https://github.com/"),
    ],
)
def test_missing_release(github: Server, tags: list[object] | None, hint: str) -> None:
    listed = None if tags is None else [{"tag_name": tag} for tag in tags]
    github.answers[f"{RELEASES}?per_page=100"] = status(200, json.dumps(listed).encode())
    with pytest.raises(NetworkError, match="kestrel has no release '1\\.2\\.3'") as caught:
        fetch(ReleaseAgent(version="1.2.3"))
    assert caught.value.hint.startswith(hint)
    assert len(asked(github)) == 2


def test_local(tmp_path: Path) -> None:
    path = project.write(tmp_path, "kestrel", KESTREL)
    assert fetch(LocalAgent(path=path)).content.digest.hex == sha256(KESTREL)
    assert fetch(LocalAgent(path=path, checksum=Digest.of(KESTREL))).url is None
    with pytest.raises(CorruptError, match=r"not the 0{64} in \[agent\] checksum"):
        fetch(LocalAgent(path=path, checksum=Digest("0" * 64)))


def test_http(github: Server) -> None:
    github.answers["/agent"] = content(KESTREL)
    url = github.url("/agent")
    assert fetch(HttpAgent(url=url)).content.digest.hex == sha256(KESTREL)
    assert fetch(HttpAgent(url=url, checksum=Digest.of(KESTREL)), offline=True).url == url
    with pytest.raises(CorruptError, match=r"0{64}"):
        fetch(HttpAgent(url=url, checksum=Digest("0" * 64)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a program: it is empty"),
        (b"<!DOCTYPE html>", "is not a program: it is a web page"),
        (b"port: 80\n", 'is not a program: it is text that begins with "port: 80"'),
        (b"\n  # R\xc3\xa9gles\r\n", 'is text that begins with "# Régles"'),
        (b"x" * 39 + "é".encode(), f'is text that begins with "{"x" * 39}"'),
        (b"\x1b]0;title\x07", "is data that begins with the bytes 1b 5d 30 3b 74 69 74 6c"),
        (b"\xff" * 600, "is data that begins with the bytes ff ff ff ff ff ff ff ff"),
        (gzip.compress(KESTREL, mtime=0), "is compressed with gzip; unpack it first"),
        (pack(file("kestrel", KESTREL)), "is a tar archive; unpack it first"),
        (b"MZ\x90\0", "is a program for Windows"),
        (b"\xef\xbb\xbf#!/bin/sh\n", "is a script with a byte order mark"),
        (b"#!/bin/sh\r\necho\r\n", "is a script with the line ends of Windows"),
        (b"#! \n", "is a script that names no interpreter"),
        (KESTREL[:10], "is only the beginning of an ELF file"),
        (KESTREL[:16] + b"\1\0" + KESTREL[18:], "but an object file or a core dump"),
        (KESTREL_ARM64, "is for arm64, not for amd64"),
        (project.program(3), "is for 386, not for amd64"),
        (KESTREL[:4] + b"\1" + KESTREL[5:], "is for 32-bit little-endian amd64, not for amd64"),
        (project.program(183, big_endian=True), "is for 64-bit big-endian arm64"),
        (project.program(999), "is for ELF machine 999"),
    ],
)
def test_what_cannot_run_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(CorruptError, match=message) as caught:
        fetch(LocalAgent(path=project.write(tmp_path, "kestrel", data)))
    assert caught.value.message.isprintable()


@pytest.mark.real
def test_files_of_this_machine_as_agents(tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text("int main(void) { return 0; }")
    compile_ = ("gcc", "-o", tmp_path / "main", tmp_path / "main.c")
    daemons.run(*compile_)
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    assert fetch(LocalAgent(path=tmp_path / "main"), machine)
    daemons.run(*compile_, "-c")
    with pytest.raises(CorruptError, match="an object file"):
        fetch(LocalAgent(path=tmp_path / "main"), machine)


def test_script_runs_anywhere(tmp_path: Path) -> None:
    path = project.write(tmp_path, "kestrel", b"#!/bin/busybox sh\n")
    assert fetch(LocalAgent(path=path), "s390x").content.size == path.stat().st_size
