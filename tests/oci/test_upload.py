"""Blobs on their way to a registry."""

from __future__ import annotations

import base64
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from fledge.errors import NetworkError
from fledge.host.settings import Settings
from fledge.oci import upload
from fledge.oci.login import PUSH
from fledge.oci.reference import Name
from fledge.oci.repository import Repository
from fledge.report import Reporter, Transfer
from fledge.session import Session
from fledge.store.cache import Cache
from fledge.tree.content import hash_file
from fledge.tree.digest import Digest
from tests.support import registry
from tests.support.httpd import Exchange, Server, in_turn, redirect, status
from tests.support.oci_registry import OciRegistry
from tests.support.project import write

real = pytest.mark.real

CUT = 300 << 10
LOGIN = base64.b64encode(b"alice:wonder").decode()


class Counter(Transfer):
    def __init__(self) -> None:
        self.done = 0

    def restart(self, done: int, total: int | None) -> None:
        self.done, self.total = done, total

    def advance(self, count: int) -> None:
        self.done += count


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return Session(Settings(os.environ), Cache(tmp_path / "cache"), Reporter(), backoff=0)


@pytest.fixture(params=["memory", pytest.param("docker-registry", marks=real)])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "memory":
        with OciRegistry().serve() as served:
            yield served.host
    else:
        with registry.serve(tmp_path / "storage") as host:
            yield host


def open_repository(host: str, session: Session) -> Repository:
    return Repository.open(Name(host, "team/app", "1"), session, PUSH)


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)  # noqa: S311 - no secret


@pytest.mark.parametrize("size", [0, 1, 1000, upload.MAX_PIECE, 2 * upload.MAX_PIECE + 12345])
@pytest.mark.slow
def test_upload(size: int, host: str, session: Session, tmp_path: Path) -> None:
    data = noise(size)
    repository = open_repository(host, session)
    counter = Counter()
    assert not repository.has_blob(Digest.of(data))
    repository.upload(data, Digest.of(data), counter)
    assert repository.has_blob(Digest.of(data))
    assert (counter.done, counter.total) == (size, size)
    file = hash_file(write(tmp_path, "file", data + b"of a file"))
    repository.upload(file, file.digest, Transfer())
    assert repository.has_blob(file.digest)


@pytest.mark.slow
def test_connection_that_is_cut_again_and_again(host: str, session: Session) -> None:
    """Every connection ends after 300 KiB, and the upload goes on after what has arrived."""
    data = noise(5 << 20)
    with registry.wire(host, sends=CUT) as proxy:
        repository = open_repository(proxy.host, session)
        repository.upload(data, Digest.of(data), counter := Counter())
        assert counter.done == len(data)
        assert proxy.sent < 4 * len(data)
    assert open_repository(host, session).has_blob(Digest.of(data))


def test_small_blob_over_a_connection_that_is_cut(host: str, session: Session) -> None:
    """A blob just above what a connection takes needs shorter pieces soon."""
    data = noise(512 << 10)
    with registry.wire(host, sends=CUT) as proxy:
        open_repository(proxy.host, session).upload(data, Digest.of(data), Transfer())
    assert open_repository(host, session).has_blob(Digest.of(data))


def test_pieces_as_long_as_the_registry_wants_them(session: Session) -> None:
    data = noise(3 << 20)
    with (
        OciRegistry(min_piece=1 << 20).serve() as served,
        registry.wire(served.host, sends=(5 << 20) // 4) as proxy,
    ):
        open_repository(proxy.host, session).upload(data, Digest.of(data), Transfer())
        assert served.repository("team/app").blobs[str(Digest.of(data))] == data


@pytest.mark.parametrize("code", [404, 416, 500, 503, 429])
def test_piece_that_is_refused_once(code: int, session: Session) -> None:
    data = noise(3000)
    with OciRegistry().serve() as served:
        repository = open_repository(served.host, session)
        answer = served.answer
        refused: list[str] = []

        def once(exchange: Exchange) -> None:
            if exchange.command == "PUT" and not refused:
                refused.append(exchange.path)
                exchange.reply(code)
            else:
                answer(exchange)

        served.answer = once  # type: ignore[method-assign]
        repository.upload(data, Digest.of(data), Transfer())
        assert refused
        assert str(Digest.of(data)) in served.repository("team/app").blobs


def test_registry_that_never_takes_it(session: Session) -> None:
    data = noise(3000)
    with OciRegistry().serve() as served:
        repository = open_repository(served.host, session)
        served.answers["POST /v2/team/app/blobs/uploads/"] = status(503)
        with pytest.raises(NetworkError, match="503"):
            repository.upload(data, Digest.of(data), Transfer())
        assert len(served.seen) < 10
        served.answers["POST /v2/team/app/blobs/uploads/"] = status(202)
        with pytest.raises(NetworkError, match="does not say where to upload to"):
            repository.upload(data, Digest.of(data), Transfer())


def test_wrong_digest(session: Session) -> None:
    with OciRegistry().serve() as served:
        repository = open_repository(served.host, session)
        with pytest.raises(NetworkError, match="DIGEST_INVALID"):
            repository.upload(b"data", Digest.of(b"other"), Transfer())


@pytest.fixture
def private(tmp_path: Path, session: Session) -> Iterator[Server]:
    """A registry that asks for the login of the user, who has one."""
    with Server() as server:
        host = server.url("").removeprefix("http://")
        config = {"auths": {host: {"auth": LOGIN}}}
        write(tmp_path, "docker/config.json", json.dumps(config).encode())
        write(tmp_path, "netrc", b"default login bob password builder\n")
        server.answers["/v2/"] = status(200, b"{}")
        yield server


def challenge(exchange: Exchange) -> None:
    exchange.reply(401, headers={"WWW-Authenticate": 'Basic realm="x"'})


@pytest.mark.slow
def test_login_is_not_for_where_a_registry_uploads_to(private: Server, session: Session) -> None:
    data = noise(2 * upload.MAX_PIECE)
    with Server() as store:
        place = store.url("/store?token=secret")
        accepted = status(202, headers={"Location": place, "Range": f"0-{upload.MAX_PIECE - 1}"})
        path = "/v2/team/app/blobs/uploads/"
        private.answers[path] = in_turn(challenge, accepted)
        final = f"/store?token=secret&digest=sha256%3A{Digest.of(data).hex}"
        store.answers["/store?token=secret"] = in_turn(status(503), accepted)
        store.answers[final] = status(201)
        host = private.url("").removeprefix("http://")
        open_repository(host, session).upload(data, Digest.of(data), Transfer())
        assert [
            each.headers.get("Authorization") for each in private.seen if each.path == path
        ] == [
            None,
            f"Basic {LOGIN}",
        ]
        assert {each.method for each in store.seen} == {"PATCH", "GET", "PUT"}
        assert {each.headers.get("Authorization") for each in store.seen} == {None}
        # What the store answers about a login does not get one either.
        store.answers["/store?token=secret"] = challenge
        private.answers[path] = accepted
        with pytest.raises(NetworkError):
            open_repository(host, session).upload(data, Digest.of(data), Transfer())
        assert {each.headers.get("Authorization") for each in store.seen} == {None}


def test_upload_is_not_led_to_plain_http(
    tmp_path: Path, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = registry.Authority.make()
    leaf = authority.issue(tmp_path)
    pem = tmp_path / "both.pem"
    pem.write_text(Path(leaf["certificate"]).read_text() + Path(leaf["key"]).read_text())
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.write(tmp_path / "ca.pem")))
    session = Session(Settings(os.environ), session.cache, Reporter(), backoff=0)
    with Server(certificate=pem) as server, Server() as store:
        server.answers["/v2/"] = status(200, b"{}")
        location = {"Location": store.url("/store")}
        server.answers["/v2/team/app/blobs/uploads/"] = status(202, headers=location)
        repository = open_repository(server.url("").removeprefix("https://"), session)
        assert repository.url.startswith("https://")
        with pytest.raises(NetworkError, match=r"to upload to http://.* which is not safe"):
            repository.upload(b"data", Digest.of(b"data"), Transfer())
        assert store.seen == []


def test_redirect_of_what_is_sent_is_not_followed(session: Session) -> None:
    with OciRegistry().serve() as served, Server() as other:
        repository = open_repository(served.host, session)
        served.answers["POST /v2/team/app/blobs/uploads/"] = redirect(other.url("/elsewhere"))
        with pytest.raises(NetworkError, match="302"):
            repository.upload(b"data", Digest.of(b"data"), Transfer())
        assert other.seen == []
