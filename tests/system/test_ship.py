"""Artifacts to Debian's docker-registry and back, and what other clients make of them."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

import fledge as library
from fledge.errors import NetworkError
from fledge.host.settings import Settings
from fledge.operations.pull import pull
from fledge.operations.push import push
from fledge.report import Reporter
from fledge.session import Session
from fledge.store.cache import Cache
from fledge.tree.content import hash_file
from tests.support import registry, screen, shipped
from tests.support.project import Fledge, write
from tests.support.shipped import CHUNK, PAYLOAD

pytestmark = pytest.mark.real

LOGIN = base64.b64encode(b"alice:wonder").decode()
WRONG_LOGIN = base64.b64encode(b"alice:blunder").decode()
CUT = 300 << 10


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return Session(Settings(os.environ), Cache(tmp_path / "cache"), Reporter(), backoff=0)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "storage"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return a function that writes a login into Docker's config."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))

    def config(host: str, auth: str) -> None:
        text = json.dumps({"auths": {host: {"auth": auth}}})
        write(tmp_path, "docker/config.json", text.encode())

    return config


@pytest.mark.parametrize("whole", [False, True])
def test_round_trip(
    whole: bool, artifacts: Path, storage: Path, session: Session, out: Path
) -> None:
    """All artifacts under one tag; provenance is under the fallback tag."""
    names = ["web.img", "plugin.cpio.gz"]
    paths = [artifacts / each / name for each in ("amd64", "arm64") for name in names]
    with registry.serve(storage) as host:
        push(paths, f"{host}/team/web:1", whole=whole, session=session)
        again = push(paths, f"{host}/team/web:1", whole=whole, session=session)
        assert [each.sent for each in again] == [0, 0, 0, 0]
        pulled = pull(f"{host}/team/web:1", out, platform="linux/arm64", session=session)
    assert [each.path.name for each in pulled] == names
    for each in pulled:
        source = artifacts / "arm64" / each.path.name
        assert each.path.read_bytes() == source.read_bytes()
        assert each.path.stat().st_blocks * 512 <= source.stat().st_blocks * 512 + CHUNK
        statement = f"{each.path.name}.provenance.json"
        assert (out / statement).read_bytes() == source.with_name(statement).read_bytes()
    assert (out / "web.img.manifest.json").exists()
    toml = shipped.config_of(artifacts, "web.img", "arm64")
    assert library.verify(out / "web.img", toml, session=session).equal


def test_deleted_chunk(web: Path, storage: Path, session: Session, out: Path) -> None:
    with registry.serve(storage, deletes=True) as host:
        push(web, f"{host}/web:1", session=session)
        api = f"http://{host}/v2/web"
        accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
        manifest = requests.get(f"{api}/manifests/1", headers=accept, timeout=10).json()
        layer = manifest["layers"][2]
        gone = requests.delete(f"{api}/blobs/{layer['digest']}", timeout=10)
        assert gone.status_code == 202
        with pytest.raises(NetworkError) as caught:
            pull(f"{host}/web:1", out, session=session)
        number = int(layer["annotations"]["com.github.volantvm.fledge.offset"]) // CHUNK + 1
        assert f"does not have chunk {number} of " in caught.value.message
        assert caught.value.hint == "It is incomplete there: push it again."
        assert os.listdir(out) == []
        [pushed] = push(web, f"{host}/web:1", session=session)
        assert pushed.sent == layer["size"]
        pull(f"{host}/web:1", out, session=session)
    assert (out / "web.img").read_bytes() == web.read_bytes()


def test_connections_that_are_cut_again_and_again(
    web: Path, storage: Path, session: Session, out: Path
) -> None:
    """Every connection ends after 300 KiB in one direction, and both commands complete."""
    with registry.serve(storage) as host:
        with registry.wire(host, sends=CUT) as proxy:
            push(web, f"{proxy.host}/web:1", session=session)
            assert proxy.sent > PAYLOAD
        with registry.wire(host, receives=CUT) as proxy:
            pull(f"{proxy.host}/web:1", out, session=session)
            assert proxy.received > PAYLOAD
    assert (out / "web.img").read_bytes() == web.read_bytes()


def test_basic_login(
    web: Path, storage: Path, session: Session, out: Path, login: Callable[[str, str], None]
) -> None:
    file = write(storage.parent, "htpasswd", registry.HTPASSWD.encode())
    with registry.serve(storage, auth={"htpasswd": {"realm": "r", "path": str(file)}}) as host:
        for auth, words in (("", "without a login"), (WRONG_LOGIN, "does not accept the login")):
            login(host, auth)
            with pytest.raises(NetworkError, match=words) as caught:
                push(web, f"{host}/team/web:1", session=session)
            assert f"docker login {host}" in caught.value.hint
        login(host, LOGIN)
        push(web, f"{host}/team/web:1", session=session)
        pull(f"{host}/team/web:1", out, session=session)
    assert (out / "web.img").read_bytes() == web.read_bytes()


def test_token(
    web: Path, storage: Path, session: Session, out: Path, login: Callable[[str, str], None]
) -> None:
    authority = registry.Authority.make()
    tokens = registry.TokenServer(authority, logins=frozenset({f"Basic {LOGIN}"}))
    with registry.serve_with_tokens(storage, tokens, "team/web") as (host, server):
        login(host, LOGIN)
        push(web, f"{host}/team/web:1", session=session)
        assert {each.path.partition("%3A")[2] for each in server.seen} == {
            "team%2Fweb%3Apull%2Cpush"
        }
        server.seen.clear()
        pull(f"{host}/team/web:1", out, session=session)
        assert {each.path.partition("%3A")[2] for each in server.seen} == {"team%2Fweb%3Apull"}
    assert (out / "web.img").read_bytes() == web.read_bytes()


def test_token_that_does_not_allow_a_push(
    web: Path, storage: Path, session: Session, login: Callable[[str, str], None]
) -> None:
    authority = registry.Authority.make()
    allows = frozenset({"pull"})
    tokens = registry.TokenServer(authority, logins=frozenset({f"Basic {LOGIN}"}), allows=allows)
    with registry.serve_with_tokens(storage, tokens, "team/web") as (host, _):
        login(host, LOGIN)
        with pytest.raises(NetworkError) as caught:
            push(web, f"{host}/team/web:1", session=session)
    assert f"{host} denies access to team/web with the login of alice" in caught.value.message
    assert "whether alice may push to it" in caught.value.hint
    assert f"docker login {host} changes the user" in caught.value.hint


def test_tls(
    web: Path, tmp_path: Path, storage: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = registry.Authority.make()
    with registry.serve(storage, http={"tls": authority.issue(tmp_path)}) as host:
        session = Session(Settings(os.environ), Cache(tmp_path / "cache"), Reporter(), backoff=0)
        with pytest.raises(NetworkError, match="cannot be trusted"):
            push(web, f"{host}/web:1", session=session)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.write(tmp_path / "ca.pem")))
        session = Session(Settings(os.environ), Cache(tmp_path / "cache"), Reporter(), backoff=0)
        push(web, f"{host}/web:1", session=session)
        pull(f"{host}/web:1", out, session=session)
    assert (out / "web.img").read_bytes() == web.read_bytes()


@pytest.mark.parametrize("name", ["web.img", "plugin.cpio.gz"])
def test_other_clients_read_a_whole_artifact(
    name: str, artifacts: Path, storage: Path, session: Session, out: Path
) -> None:
    from oras.provider import Registry  # noqa: PLC0415

    source = artifacts / "amd64" / name
    with registry.serve(storage) as host:
        push(source, f"{host}/team/web:1", whole=True, session=session)
        client = Registry(hostname=host, insecure=True)
        assert client.pull(target=f"{host}/team/web:1", outdir=str(out)) == [str(out / name)]
        subprocess.run(
            [
                *("skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"),
                *(f"docker://{host}/team/web:1", f"oci:{out / 'layout'}:1"),
            ],
            check=True,
        )
    assert (out / name).read_bytes() == source.read_bytes()
    blobs = [each.read_bytes() for each in (out / "layout" / "blobs" / "sha256").iterdir()]
    assert source.read_bytes() in blobs


def test_skopeo_copies_chunks_too(web: Path, storage: Path, session: Session, out: Path) -> None:
    """A copy of the whole repository by another client can be pulled."""
    with registry.serve(storage) as host:
        push(web, f"{host}/web:1", session=session)
        skopeo = ["skopeo", "--insecure-policy", "copy", "--quiet"]
        options = ["--src-tls-verify=false", "--dest-tls-verify=false"]
        names = [f"docker://{host}/web:1", f"docker://{host}/copy:1"]
        subprocess.run([*skopeo, *options, *names], check=True)
        pull(f"{host}/copy:1", out, session=session)
    assert (out / "web.img").read_bytes() == web.read_bytes()


def test_commands(web: Path, storage: Path, fledge: Fledge, tmp_path: Path) -> None:
    with registry.serve(storage) as host:
        done = fledge("push", web, f"{host}/web:1")
        assert done.code == 0
        assert re.fullmatch(rf"{re.escape(host)}/web:1@sha256:[0-9a-f]{{64}}\n", done.out)
        reference = done.out.strip()
        words = r"push      web\.img, [\d.]+ MiB sent, (\d+) of \1 chunks new"
        assert re.search(words, done.err)
        again = fledge("push", "--json", web, f"{host}/web:1")
        assert json.loads(again.out) == [
            {
                "path": str(web),
                "reference": reference,
                "sha256": hash_file(web).digest.hex,
                "size": web.stat().st_size,
                "sent": 0,
            }
        ]
        assert "0 bytes sent, 0 of " in again.err
        (tmp_path / "out").mkdir()
        done = fledge("pull", f"{host}/web:1", "-o", "out")
        assert (done.code, done.out) == (0, "out/web.img\n")
        assert re.search(r"pull      web\.img, [\d.]+ MiB", done.err)
        done = fledge("pull", reference, "-o", "out", "--json", "--platform", "amd64")
        [entry] = json.loads(done.out)
        assert entry.pop("path") == "out/web.img"
        assert entry == {
            "reference": reference,
            "sha256": json.loads(again.out)[0]["sha256"],
            "size": web.stat().st_size,
            "provenance": True,
            "manifest": True,
            "signatures": False,
        }
        done = fledge("pull", f"{host}/web:2", "-o", "out")
        assert done.code == 3
        assert "has no '2'" in done.err


@pytest.mark.parametrize("command", ["push", "pull"])
def test_what_is_on_a_terminal(
    command: str, web: Path, storage: Path, session: Session, out: Path
) -> None:
    with registry.serve(storage) as host:
        name = f"{host}/web:1"
        if command == "pull":
            push(web, name, session=session)
        arguments = [str(web), name] if command == "push" else [name, "-o", str(out)]
        shown = screen.run(
            [sys.executable, "-m", "fledge", command, *arguments], web.parent, columns=100
        )
    assert shown.code == 0
    assert shown.cursor_visible
    last = {"push": rf"{re.escape(name)}@sha256:[0-9a-f]{{64}}", "pull": re.escape(str(out))}
    step, *rest = shown.lines
    assert re.match(rf"  ✓ {command}      web\.img, [\d.]+ MiB", step)
    assert re.match(last[command], "".join(rest))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["push", "pull"])
def test_interrupted_on_a_terminal(
    command: str,
    number: signal.Signals,
    tmp_path: Path,
    storage: Path,
    session: Session,
    out: Path,
) -> None:
    web = shipped.disk(tmp_path, payload=shipped.noise(60 << 20, seed=3))
    with registry.serve(storage) as host:
        name = f"{host}/web:1"
        if command == "pull":
            push(web, name, session=session)
        arguments = [str(web), name] if command == "push" else [name, "-o", str(out)]
        some = r"/\d+ chunks" if command == "pull" else r"web\.img .*[1-9][\d.]*/"

        def middle(lines: list[str]) -> int | None:
            return number if re.search(some, "".join(lines)) else None

        shown = screen.run(
            [sys.executable, "-m", "fledge", command, *arguments], out, interrupt=middle
        )
    assert shown.code == -number
    assert shown.cursor_visible
    assert shown.lines[:2] == [f"  ✗ {command}", "error: interrupted; nothing was written"]
    assert os.listdir(out) == []
