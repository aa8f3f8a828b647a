"""Images in Debian's docker-registry, and in misbehaving registries."""

from __future__ import annotations

import base64
import gzip
import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from fledge.errors import ConfigError, CorruptError, FledgeError, HostError, NetworkError
from fledge.host.settings import Settings
from fledge.net import certificates
from fledge.oci import credentials
from fledge.oci.image import Image, ImagePin
from fledge.oci.manifest import parse_platform
from fledge.oci.pins import open_pinned
from fledge.oci.reference import Name, RegistryReference, parse
from fledge.oci.registry import open_image
from fledge.report import Reporter
from fledge.session import Session
from fledge.store.cache import Cache
from fledge.tree.content import read_content
from fledge.tree.digest import Digest
from tests.support import images, registry
from tests.support.httpd import Answer, Exchange, Server, content, in_turn, redirect, status
from tests.support.project import write
from tests.support.tars import file, pack

AMD64 = parse_platform("linux/amd64")
LOGIN = base64.b64encode(b"alice:wonder").decode()
WRONG_LOGIN = base64.b64encode(b"alice:blunder").decode()

TARS = (pack(file("a", b"lower")), pack(file("b", secrets.token_bytes(1 << 20))))
OCI_IMAGE = images.image(*TARS)
DOCKER_IMAGE = images.image(*TARS, docker=True)
ARM_IMAGE = images.image(pack(file("c", b"arm")), architecture="arm64")
INDEX = images.index(ARM_IMAGE, OCI_IMAGE)
DOCKER_INDEX = images.index(DOCKER_IMAGE, images.index(ARM_IMAGE, docker=True), docker=True)
TAGGED = {
    "oci": OCI_IMAGE,
    "docker": DOCKER_IMAGE,
    "arm": ARM_IMAGE,
    "index": INDEX,
    "docker-index": DOCKER_INDEX,
}

real = pytest.mark.real


class Notes(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture(autouse=True)
def docker_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[object], Path]:
    """Return a function that writes Docker's config. Without a call there is none."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    for name in (
        "REGISTRY_AUTH_FILE",
        "XDG_CONFIG_HOME",
        "SSL_CERT_FILE",
        "FLEDGE_REGISTRY_MIRRORS",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("FLEDGE_INSECURE_REGISTRIES", raising=False)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    return lambda config: write(tmp_path, "docker/config.json", json.dumps(config).encode())


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def session(tmp_path: Path, notes: Notes) -> Session:
    # Read the environment at each call, because tests change it.
    return Session(Settings(os.environ), Cache(tmp_path / "cache"), notes, backoff=0)


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a registry with an image under all `TAGGED` names."""
    folder = tmp_path_factory.mktemp("registry") / "storage"
    with registry.serve(folder) as host:
        for tag, manifest in TAGGED.items():
            registry.push(host, "team/app", manifest, tag)
    return folder


@pytest.fixture(scope="session")
def open_registry(storage: Path) -> Iterator[str]:
    """The host of a registry without logins."""
    with registry.serve(storage) as host:
        yield host


def app(host: str, tag: str = "oci") -> Name:
    return Name(host, "team/app", tag)


def blobs(image: Image) -> list[bytes]:
    """Return the contents of all layers, downloaded at once."""
    with ThreadPoolExecutor() as pool:
        spans = list(pool.map(lambda layer: layer.blob(), image.layers))
    return [b"".join(read_content(span)) for span in spans]


def check(image: Image) -> None:
    """Check that the image is that of `TARS`, in either form."""
    assert [layer.diff_id for layer in image.layers] == [Digest.of(tar) for tar in TARS]
    assert (image.config, *blobs(image)) == OCI_IMAGE.blobs


@real
@pytest.mark.parametrize("tag", ["oci", "docker", "index", "docker-index"])
def test_open(tag: str, open_registry: str, session: Session) -> None:
    image = open_image(app(open_registry, tag), AMD64, session)
    check(image)
    chosen = DOCKER_IMAGE if tag.startswith("docker") else OCI_IMAGE
    assert image.uri == f"{open_registry}/team/app:{tag}@sha256:{chosen.sha256}"


@real
def test_sizes_of_a_pinned_image(open_registry: str, session: Session) -> None:
    opened = open_image(app(open_registry), AMD64, session)
    sizes = [len(blob) for blob in OCI_IMAGE.blobs[1:]]
    assert [layer.size for layer in opened.layers] == sizes
    diff_ids = tuple(layer.diff_id for layer in opened.layers)
    pin = ImagePin(opened.manifest, Digest.of(opened.config), diff_ids)
    named = RegistryReference(app(open_registry))
    for _ in ("the cache has the manifest", "the cache is empty"):
        pinned = open_pinned(named, pin, AMD64, session)
        assert [layer.size for layer in pinned.layers] == sizes
        shutil.rmtree(session.cache.root / "blobs")


@real
def test_layers_are_downloaded_when_they_are_asked_for(
    open_registry: str, session: Session
) -> None:
    image = open_image(app(open_registry), AMD64, session)
    layers = [Digest.of(blob) for blob in OCI_IMAGE.blobs[1:]]
    assert [session.cache.find(digest) for digest in layers] == [None, None]
    image.layers[0].blob()
    assert session.cache.find(layers[0])


@real
@pytest.mark.parametrize("tag", ["index", "docker-index"])
def test_platform(tag: str, open_registry: str, session: Session) -> None:
    image = open_image(app(open_registry, tag), parse_platform("linux/arm64/v8"), session)
    assert image.config == ARM_IMAGE.blobs[0]


@real
@pytest.mark.parametrize(
    ("tag", "offer"), [("index", "linux/amd64, linux/arm64"), ("arm", "linux/arm64")]
)
def test_platform_that_it_is_not_for(
    tag: str, offer: str, open_registry: str, session: Session
) -> None:
    with pytest.raises(ConfigError) as caught:
        open_image(app(open_registry, tag), parse_platform("linux/s390x"), session)
    assert "linux/s390x" in caught.value.message
    assert offer in caught.value.hint


@real
@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("team/app:dokcer", "team/app has no 'dokcer'", "docker"),
        ("team/app@sha256:" + "0" * 64, "team/app has no 'sha256:0000", "Check"),
        ("nobody/app:oci", "nobody/app has no 'oci'", "no such repository"),
    ],
)
def test_missing(text: str, message: str, hint: str, open_registry: str, session: Session) -> None:
    name = parse(f"{open_registry}/{text}", Path())
    assert isinstance(name, Name)
    with pytest.raises(NetworkError) as caught:
        open_image(name, AMD64, session)
    assert message in caught.value.message
    assert hint in caught.value.hint


@real
@pytest.mark.parametrize(
    ("tag", "hint"),
    [
        ("1.2.3", "Did you mean v1.2.3?"),
        ("v1.2.4", "There are v1.2.3, v1.2.10."),
        ("latest", "There are v1.2.10, v1.2.3."),
    ],
)
def test_missing_version(tag: str, hint: str, tmp_path: Path, session: Session) -> None:
    with registry.serve(tmp_path / "storage") as host:
        for version in ("v1.2.3", "v1.2.10"):
            registry.push(host, "team/versions", OCI_IMAGE, version)
        with pytest.raises(NetworkError, match=f"team/versions has no '{tag}'") as caught:
            open_image(Name(host, "team/versions", tag), AMD64, session)
    assert caught.value.hint == hint


@real
def test_offline(open_registry: str, session: Session) -> None:
    pinned = Name(open_registry, "team/app", None, Digest(INDEX.sha256))
    offline = Session(session.settings, session.cache, Reporter(), offline=True)
    with pytest.raises(NetworkError, match="not in the cache"):
        open_image(pinned, AMD64, offline)
    check(open_image(app(open_registry, "index"), AMD64, session))
    check(open_image(pinned, AMD64, offline))
    with pytest.raises(NetworkError, match="tag"):
        open_image(app(open_registry), AMD64, offline)


@pytest.fixture(scope="session")
def htpasswd(storage: Path) -> Iterator[str]:
    """The host of a registry that requires a user name and password."""
    file = storage.with_name("htpasswd")
    file.write_text(registry.HTPASSWD)
    with registry.serve(storage, auth={"htpasswd": {"realm": "r", "path": str(file)}}) as host:
        yield host


@pytest.fixture
def helper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Install a docker-credential-test that answers with a line of shell."""

    def install(line: str) -> None:
        script = (
            f"#!/bin/sh\nread host\ncase $1:$host in get:127.0.0.1:*) {line};; *) exit 9; esac\n"
        )
        program = write(tmp_path, "bin/docker-credential-test", script.encode(), executable=True)
        monkeypatch.setenv("PATH", str(program.parent), prepend=":")

    return install


HELPED = """echo '{"ServerURL": "", "Username": "alice", "Secret": "wonder"}'"""


@real
@pytest.mark.parametrize(
    "config",
    [
        {"auths": {"HOST": {"auth": LOGIN}}},
        {"auths": {"https://HOST/v1/": {"auth": LOGIN}}},
        {"credHelpers": {"HOST": "test"}, "credsStore": "missing"},
        {"auths": {"HOST": {}}, "credsStore": "test"},
    ],
)
def test_basic_login(
    config: object,
    htpasswd: str,
    session: Session,
    docker_config: Callable[[object], Path],
    helper: Callable[[str], None],
) -> None:
    docker_config(json.loads(json.dumps(config).replace("HOST", htpasswd)))
    helper(HELPED)
    check(open_image(app(htpasswd), AMD64, session))


@real
@pytest.mark.parametrize("login", [None, WRONG_LOGIN])
def test_login_that_is_refused(
    login: str | None,
    htpasswd: str,
    session: Session,
    docker_config: Callable[[object], Path],
) -> None:
    config = docker_config({"auths": {htpasswd: {"auth": login}}})
    with pytest.raises(NetworkError) as caught:
        open_image(app(htpasswd), AMD64, session)
    message = f"{htpasswd} denies access to team/app without a login"
    hint = "Check the name; if it is private, run"
    if login:
        message = f"{htpasswd} does not accept the login of alice in {config}"
        hint = "User name or password are wrong, or have expired: run"
    assert caught.value.message.startswith(message)
    assert caught.value.hint.startswith(f"{hint} docker login {htpasswd}")
    assert "blunder" not in str(caught.value)


@pytest.mark.parametrize(
    ("token_status", "status_with_token", "message"),
    [
        (401, 200, "does not accept the login of alice in"),
        (403, 200, "denies access to team/app with the login of alice in"),
        (200, 401, "denies access to team/app with the login of alice in"),
    ],
)
def test_login_that_a_token_server_refuses(
    token_status: int,
    status_with_token: int,
    message: str,
    hostile: Registry,
    session: Session,
    docker_config: Callable[[object], Path],
) -> None:
    host = hostile.name.host
    docker_config({"auths": {host: {"auth": WRONG_LOGIN}}})
    wanted = challenge(f"Bearer realm=http://{host}/token,service=s")
    hostile.answer("manifests/oci", in_turn(wanted, status(status_with_token)))
    path = "/token?service=s&scope=repository%3Ateam%2Fapp%3Apull"
    hostile.server.answers[path] = status(token_status, b'{"token": "t"}')
    with pytest.raises(NetworkError) as caught:
        open_image(hostile.name, AMD64, session)
    assert f"{host} {message}" in caught.value.message
    assert f"docker login {host}" in caught.value.hint


@pytest.fixture(scope="session")
def authority() -> registry.Authority:
    return registry.Authority.make()


@real
@pytest.mark.parametrize("login", [None, LOGIN, WRONG_LOGIN])
def test_token(
    login: str | None,
    storage: Path,
    authority: registry.Authority,
    session: Session,
    docker_config: Callable[[object], Path],
) -> None:
    asked = f"Basic {LOGIN}" if login else ""
    tokens = registry.TokenServer(authority, logins=frozenset({asked}))
    with registry.serve_with_tokens(storage, tokens, "team/app") as (host, server):
        docker_config({"auths": {host: {"auth": login}}})
        if login == WRONG_LOGIN:
            with pytest.raises(NetworkError, match="does not accept the login of alice"):
                open_image(app(host), AMD64, session)
        else:
            check(open_image(app(host), AMD64, session))
        assert len(server.seen) == 1


@real
def test_token_that_expires_during_the_build(
    storage: Path, authority: registry.Authority, session: Session
) -> None:
    tokens = registry.TokenServer(authority, lifetime=2)
    with registry.serve_with_tokens(storage, tokens, "team/app") as (host, server):
        image = open_image(app(host), AMD64, session)
        before = len(server.seen)
        time.sleep(2)
        check(image)
        assert len(server.seen) > before


@pytest.fixture
def tls(storage: Path, tmp_path: Path, authority: registry.Authority) -> Iterator[str]:
    """The host of a registry on loopback that only speaks TLS."""
    with registry.serve(storage, http={"tls": authority.issue(tmp_path)}) as host:
        yield host


@real
@pytest.mark.parametrize(
    ("days", "told"),
    [
        ((-2, -1), ("certificate has expired", "must renew it, unless the clock of this machine")),
        ((1, 2), ("certificate is not yet valid", "Check the clock of this machine, which says")),
    ],
)
def test_certificate_out_of_date(
    days: tuple[int, int],
    told: tuple[str, str],
    storage: Path,
    tmp_path: Path,
    authority: registry.Authority,
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    message, hint = told
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.write(tmp_path / "ca.pem")))
    issued = authority.issue(tmp_path, *days)
    with (
        registry.serve(storage, http={"tls": issued}) as host,
        pytest.raises(NetworkError, match=f"cannot be trusted: {message}") as caught,
    ):
        open_image(app(host), AMD64, session)
    assert hint in caught.value.hint
    assert "CA" not in caught.value.hint


@real
@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_tls(
    variable: str,
    tls: str,
    tmp_path: Path,
    authority: registry.Authority,
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(NetworkError, match="cannot be trusted") as caught:
        open_image(app(tls), AMD64, session)
    assert variable in caught.value.hint
    monkeypatch.setenv(variable, str(authority.write(tmp_path / "ca.pem")))
    own = Session(session.settings, session.cache, session.reporter, backoff=0)
    check(open_image(app(tls), AMD64, own))


@real
def test_authority_of_the_system(
    tls: str,
    tmp_path: Path,
    authority: registry.Authority,
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = tmp_path / "missing.pem"
    bundle = authority.write(tmp_path / "ca.pem")
    monkeypatch.setattr(certificates, "SYSTEM_BUNDLES", (missing, bundle))
    check(open_image(app(tls), AMD64, session))


@real
def test_authority_for_one_registry(
    tls: str, tmp_path: Path, authority: registry.Authority, session: Session
) -> None:
    folder = tmp_path / "home" / ".config" / "containers" / "certs.d" / tls
    folder.mkdir(parents=True)
    authority.write(folder / "ca.crt")
    check(open_image(app(tls), AMD64, session))
    (folder / "bad.crt").write_text("no PEM")
    with pytest.raises(HostError, match=r"bad\.crt cannot be used"):
        open_image(app(tls), AMD64, session)


def test_client_certificate(tmp_path: Path) -> None:
    folder = tmp_path / "certs.d" / "example.com:5000"
    folder.mkdir(parents=True)
    for name in ("client.cert", "client.key", "other.cert"):
        (folder / name).touch()
    found = certificates.Certificates(None, (tmp_path, tmp_path / "certs.d"))
    client = str(folder / "client.cert"), str(folder / "client.key")
    assert found.for_host("example.com:5000").client == client
    assert found.for_host("example.com").client is None
    assert found.for_host("../certs.d/example.com:5000").client is None


def test_tls_that_drops_plain_http(
    tmp_path: Path,
    authority: registry.Authority,
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    issued = authority.issue(tmp_path)
    both = [Path(issued[kind]).read_bytes() for kind in ("certificate", "key")]
    pem = write(tmp_path, "both.pem", b"".join(both))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.write(tmp_path / "ca.pem")))
    image = images.image(TARS[0])
    with Server(certificate=pem) as server:
        secure = Registry(server)
        secure.hold(image)
        assert blobs(open_image(secure.name, AMD64, session)) == [image.blobs[1]]


@real
def test_mirrors(
    open_registry: str,
    hostile: Registry,
    session: Session,
    notes: Notes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mirrors = f"other.example=x.example, docker.io={hostile.name.host},docker.io={open_registry}"
    monkeypatch.setenv("FLEDGE_REGISTRY_MIRRORS", mirrors)
    image = open_image(app("docker.io"), AMD64, session)
    check(image)
    assert image.uri == f"docker.io/team/app:oci@sha256:{OCI_IMAGE.sha256}"
    assert f"has no 'oci'; asking {open_registry}" in notes.notes[0]
    assert len(notes.notes) == 1


def test_mirror_that_fails(
    hostile: Registry, session: Session, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a mirror sends is checked, and what it does not have comes from the registry."""
    image = images.image(*TARS)
    hostile.hold(image)
    layers = [f"blobs/sha256:{images.sha256(blob)}" for blob in image.blobs[1:]]
    with Server() as server:
        mirror = Registry(server)
        host = mirror.name.host
        monkeypatch.setenv("FLEDGE_REGISTRY_MIRRORS", f"{hostile.name.host}={host}/cache")
        for path, answer in {
            "manifests/oci": status(200, image.body),
            f"blobs/sha256:{images.sha256(image.blobs[0])}": status(200, image.blobs[0]),
            layers[0]: status(200, image.blobs[2]),
        }.items():
            server.answers[f"/v2/cache/team/app/{path}"] = answer
        opened = open_image(hostile.name, AMD64, session)
        assert hostile.server.seen == []
        assert blobs(opened) == list(image.blobs[1:])
    assert all(f"asking {hostile.name.host}" in note for note in notes.notes)
    asked = [request.path for request in hostile.server.seen if request.path != "/v2/"]
    assert sorted(asked) == sorted(f"/v2/team/app/{layer}" for layer in layers)


@pytest.mark.parametrize("value", ["docker.io", "=x.example", "docker.io=mirror", "docker.io=/"])
def test_mirror_that_cannot_be(
    value: str, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEDGE_REGISTRY_MIRRORS", value)
    with pytest.raises(ConfigError):
        open_image(app("docker.io"), AMD64, session)


def test_proxies_are_not_for_loopback(
    hostile: Registry, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = images.image(TARS[0])
    hostile.hold(image)
    with Server() as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url(""))
        assert blobs(open_image(hostile.name, AMD64, session)) == [image.blobs[1]]
        assert proxy.seen == []


@real
def test_connection_that_is_cut_again_and_again(
    open_registry: str, session: Session, notes: Notes
) -> None:
    with registry.cutting(open_registry, after=300_000) as host:
        check(open_image(app(host), AMD64, session))
    assert len([note for note in notes.notes if "stopped after" in note]) >= 3


@real
@pytest.mark.parametrize("code", [429, 503])
def test_busy_registry(code: int, open_registry: str, session: Session, notes: Notes) -> None:
    with registry.forward(open_registry) as server:
        host = server.url("").removeprefix("http://")
        layer = f"/v2/team/app/blobs/sha256:{images.sha256(OCI_IMAGE.blobs[1])}"
        for path in ("/v2/team/app/manifests/oci", layer):
            busy = status(code, headers={"Retry-After": "0"})
            server.answers[path] = in_turn(busy, busy, server.answers.get(path, busy))
        check(open_image(app(host), AMD64, session))
    tries = [note for note in notes.notes if note.endswith("; trying again in 0 s")]
    assert [f"answers {code}" in note for note in tries] == [True, False] * 2


@real
def test_blob_store_elsewhere_sees_no_login(
    storage: Path, htpasswd: str, session: Session, docker_config: Callable[[object], Path]
) -> None:
    auth = {"htpasswd": {"realm": "r", "path": str(storage.with_name("htpasswd"))}}
    with Server() as store:
        for blob in OCI_IMAGE.blobs:
            sha256 = images.sha256(blob)
            path = f"/docker/registry/v2/blobs/sha256/{sha256[:2]}/{sha256}/data"
            store.answers[path] = content(blob)
        redirect = [{"name": "redirect", "options": {"baseurl": store.url("/")}}]
        with registry.serve(storage, auth=auth, middleware={"storage": redirect}) as host:
            docker_config({"auths": {host: {"auth": LOGIN}}})
            check(open_image(app(host), AMD64, session))
        assert len(store.seen) == len(OCI_IMAGE.blobs)
        assert {request.headers["Authorization"] for request in store.seen} == {None}


@dataclass
class Registry:
    """A registry that answers as a test defines, below /v2/team/app/."""

    server: Server

    @property
    def name(self) -> Name:
        return app(urlsplit(self.server.url("")).netloc)

    def answer(self, path: str, answer: Answer) -> None:
        self.server.answers[f"/v2/team/app/{path}"] = answer

    def hold(self, manifest: images.Manifest) -> None:
        self.answer("manifests/oci", status(200, manifest.body))
        for blob in manifest.blobs:
            self.answer(f"blobs/sha256:{images.sha256(blob)}", status(200, blob))


@pytest.fixture
def hostile() -> Iterator[Registry]:
    with Server() as server:
        yield Registry(server)


def challenge(value: str) -> Answer:
    return status(401, headers={"WWW-Authenticate": value})


def changed(change: Callable[[dict[str, object]], object]) -> images.Manifest:
    """Change the manifest of an image with one layer."""
    image = images.image(TARS[0])
    body = json.loads(image.body)
    change(body)
    return images.Manifest(image.media_type, json.dumps(body).encode(), image.blobs)


def grown(by: int, part: str) -> images.Manifest:
    def grow(body: dict[str, object]) -> None:
        found = body[part]
        descriptor = found[0] if isinstance(found, list) else found
        assert isinstance(descriptor, dict)
        descriptor["size"] += by

    return changed(grow)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (images.Manifest("", b"<html>login</html>"), "a web page"),
        (images.Manifest("", b"[" * 100_000), "not JSON"),
        (images.Manifest("", b'{"x": "' + b"x" * (5 << 20) + b'"}'), "more than the 4194304"),
        (images.Manifest("", b'{"schemaVersion": 1}'), "schema version 1"),
        (changed(lambda body: body.update(layers=[])), "0 layers, but 1 diff_ids"),
        (changed(lambda body: body.update(config=[])), "config"),
        (grown(1, "config"), "config .* but its manifest says"),
        (grown(-1, "config"), "config has more than"),
        (grown(8 << 20, "config"), "config has more than"),
        (grown(1, "layers"), "layer 1 of 1 .* but its manifest says"),
        (grown(-1, "layers"), "layer 1 of 1 has more than"),
    ],
)
def test_image_that_is_not_what_it_claims(
    manifest: images.Manifest, message: str, hostile: Registry, session: Session
) -> None:
    hostile.hold(manifest)
    with pytest.raises(CorruptError, match=message):
        blobs(open_image(hostile.name, AMD64, session))


@pytest.mark.parametrize("part", range(2))
def test_blob_of_another_digest(part: int, hostile: Registry, session: Session) -> None:
    image = images.image(TARS[0])
    hostile.hold(image)
    blob = image.blobs[part]
    hostile.answer(f"blobs/sha256:{images.sha256(blob)}", status(200, b"\0" * len(blob)))
    with pytest.raises(CorruptError, match="expected"):
        blobs(open_image(hostile.name, AMD64, session))


def test_indexes_without_end(hostile: Registry, session: Session) -> None:
    inner = images.image(TARS[0])
    for _ in range(20):
        hostile.answer(f"manifests/sha256:{inner.sha256}", status(200, inner.body))
        inner = images.index(inner)
    hostile.hold(images.index(inner))
    hostile.answer(f"manifests/sha256:{inner.sha256}", status(200, inner.body))
    with pytest.raises(FledgeError, match="indexes"):
        open_image(hostile.name, AMD64, session)


WEB_PAGE = b"<!DOCTYPE html><html><head><title>Hotel\x1b[2J Login</title></head></html>"


def test_what_is_missing_is_named(hostile: Registry, session: Session) -> None:
    digests = [f"sha256:{images.sha256(blob)}" for blob in OCI_IMAGE.blobs]
    hostile.hold(OCI_IMAGE)
    hostile.answer(f"blobs/{digests[2]}", status(404, b"{}"))
    with pytest.raises(NetworkError) as caught:
        blobs(open_image(hostile.name, AMD64, session))
    assert caught.value.message == (
        f"{hostile.name}: the registry does not have layer 2 of 2 ({digests[2]})"
    )
    hostile.answer(f"blobs/{digests[0]}", status(404, b"{}"))
    session.cache.path(Digest.of(OCI_IMAGE.blobs[0])).unlink()
    with pytest.raises(NetworkError, match="does not have config"):
        open_image(hostile.name, AMD64, session)


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ],
)
def test_foreign_layer(media_type: str, hostile: Registry, session: Session) -> None:
    def change(body: dict[str, object]) -> None:
        layers = body["layers"]
        assert isinstance(layers, list)
        layers[0] |= {"mediaType": media_type, "urls": [hostile.server.url("/layer")]}

    image = changed(change)
    hostile.hold(image)
    layer = f"blobs/sha256:{images.sha256(image.blobs[1])}"
    assert blobs(open_image(hostile.name, AMD64, session)) == [image.blobs[1]]
    session.cache.path(Digest.of(image.blobs[1])).unlink()
    hostile.answer(layer, status(404))
    with pytest.raises(NetworkError, match="which is a foreign layer"):
        blobs(open_image(hostile.name, AMD64, session))
    assert hostile.server.seen[-1].path.endswith(layer)


@pytest.mark.parametrize(
    ("code", "body", "said"),
    [
        (403, b'{"errors": [{"code": "DENIED", "message": "billing\\u001b]0;x"}]}', "billing"),
        (429, b'{"errors": [{"message": "You have reached your limit"}]}', "reached your limit"),
        (401, b"x" * 5000, "says: xxx"),
    ],
)
def test_words_of_the_registry(
    code: int, body: bytes, said: str, hostile: Registry, session: Session
) -> None:
    hostile.answer("manifests/oci", status(code, body, {"Retry-After": "0"}))
    with pytest.raises(NetworkError) as caught:
        open_image(hostile.name, AMD64, session)
    assert said in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("part", ["manifests/oci", "config", "layer", "token"])
def test_login_page_of_a_network(part: str, hostile: Registry, session: Session) -> None:
    image = images.image(TARS[0])
    hostile.hold(image)
    paths = dict(zip(("config", "layer"), image.blobs, strict=True))
    path = f"blobs/sha256:{images.sha256(paths[part])}" if part in paths else "manifests/oci"
    page = status(200, WEB_PAGE, {"Content-Type": "text/html"})
    hostile.answer(path, page)
    if part == "token":
        hostile.answer(path, challenge(f"Bearer realm={hostile.server.url('/token')}"))
        hostile.server.answers["/token?scope=repository%3Ateam%2Fapp%3Apull"] = page
    with pytest.raises(FledgeError) as caught:
        blobs(open_image(hostile.name, AMD64, session))
    assert 'a web page with the title "Hotel\\x1b[2J Login"' in caught.value.message
    assert hostile.name.host in caught.value.message


def test_documents_that_come_compressed(hostile: Registry, session: Session) -> None:
    image = images.image(*TARS)

    def packed(body: bytes) -> Answer:
        return status(200, gzip.compress(body), {"Content-Encoding": "gzip"})

    hostile.answer("manifests/oci", packed(image.body))
    for number, blob in enumerate(image.blobs):
        path = f"blobs/sha256:{images.sha256(blob)}"
        # Stores announce layers that are gzip files as encoded, and send the file.
        encoded = status(200, blob, {"Content-Encoding": "gzip"})
        hostile.answer(path, encoded if number == 1 else packed(blob))
    assert blobs(open_image(hostile.name, AMD64, session)) == list(image.blobs[1:])


def test_short_layer_without_a_length(hostile: Registry, session: Session, notes: Notes) -> None:
    image = images.image(TARS[1])
    hostile.hold(image)
    layer = image.blobs[1]

    def cut(exchange: Exchange) -> None:
        exchange.send_response(200)
        exchange.end_headers()
        exchange.wfile.write(layer[:300_000])
        exchange.close_connection = True

    hostile.answer(f"blobs/sha256:{images.sha256(layer)}", in_turn(cut, content(layer)))
    assert blobs(open_image(hostile.name, AMD64, session)) == [layer]
    assert "stopped after 300000 of" in notes.notes[0]


def test_token_that_expires_during_a_download(hostile: Registry, session: Session) -> None:
    image = images.image(TARS[1])
    hostile.hold(image)
    layer = image.blobs[1]
    wanted = challenge(f'Basic realm="b", Bearer realm="http://{hostile.name.host}/t",service="s"')
    path = f"blobs/sha256:{images.sha256(layer)}"
    hostile.answer(path, in_turn(wanted, content(layer, cut=300_000), wanted, content(layer)))
    tokens = in_turn(status(200, b'{"token": "1"}'), status(200, b'{"access_token": "2"}'))
    hostile.server.answers["/t?service=s&scope=repository%3Ateam%2Fapp%3Apull"] = tokens
    assert blobs(open_image(hostile.name, AMD64, session)) == [layer]
    asked = [request.headers for request in hostile.server.seen if request.path.endswith(path)]
    first, second = "Bearer 1", "Bearer 2"
    assert [headers["Authorization"] for headers in asked] == [None, first, first, second]
    assert [headers["Range"] for headers in asked] == [None, None, *["bytes=300000-"] * 2]


@pytest.mark.parametrize(
    "value",
    [
        "Bearer realm=URL,service=s,scope=repository:team/app:pull",
        'Bearer realm="URL",service="s",scope="",error="invalid_token"',
        'bearer Realm="URL", Service = "s"',
        "Negotiate, Basic realm=x, BEARER realm=URL service=s",
        # What allows more than to pull that image is not asked for.
        'Bearer realm="URL",service="s",scope="repository:team/app:pull,push,delete"',
        'Bearer realm="URL",service="s",scope="repository:team/secret:pull registry:catalog:*"',
        'Bearer realm="URL?scope=repository:team/app:push",service="s"',
    ],
)
def test_token_is_for_pulling_that_image(value: str, hostile: Registry, session: Session) -> None:
    image = images.image(TARS[0])
    hostile.hold(image)
    wanted = challenge(value.replace("URL", hostile.server.url("/token")))
    hostile.answer("manifests/oci", in_turn(wanted, status(200, image.body)))
    path = "/token?service=s&scope=repository%3Ateam%2Fapp%3Apull"
    hostile.server.answers[path] = status(200, b'{"token": "t"}')
    assert blobs(open_image(hostile.name, AMD64, session)) == [image.blobs[1]]


@pytest.mark.parametrize("line", ["machine 127.0.0.1", "default"])
def test_netrc_is_not_for_registries(
    line: str, hostile: Registry, session: Session, tmp_path: Path
) -> None:
    write(tmp_path, "netrc", f"{line} login alice password wonder".encode())
    image = images.image(TARS[0])
    hostile.hold(image)
    hostile.answer(
        "manifests/oci",
        in_turn(
            challenge(f'Bearer realm="{hostile.server.url("/token")}"'), status(200, image.body)
        ),
    )
    path = "/token?scope=repository%3Ateam%2Fapp%3Apull"
    hostile.server.answers[path] = status(200, b'{"token": "t"}')
    assert blobs(open_image(hostile.name, AMD64, session)) == [image.blobs[1]]
    sent = {request.headers["Authorization"] for request in hostile.server.seen}
    assert sent == {None, "Bearer t"}


def test_login_is_not_for_where_a_registry_redirects_to(
    hostile: Registry, session: Session, docker_config: Callable[[object], Path]
) -> None:
    docker_config({"auths": {hostile.name.host: {"auth": LOGIN}}})
    with Server(answers={"/blob": challenge('Basic realm="r"')}) as other:
        image = images.image(TARS[0])
        hostile.hold(image)
        hostile.answer("manifests/oci", in_turn(challenge("Basic x"), status(200, image.body)))
        hostile.answer(
            f"blobs/sha256:{images.sha256(image.blobs[0])}", redirect(other.url("/blob"))
        )
        with pytest.raises(NetworkError, match="denies access"):
            open_image(hostile.name, AMD64, session)
        assert [request.headers["Authorization"] for request in other.seen] == [None]
    assert hostile.server.seen[-1].headers["Authorization"] == f"Basic {LOGIN}"


@real
def test_registry_behind_another(
    storage: Path,
    authority: registry.Authority,
    hostile: Registry,
    session: Session,
    docker_config: Callable[[object], Path],
) -> None:
    """The first registry redirects every request to a second one, which wants a token."""
    docker_config({"auths": {hostile.name.host: {"auth": LOGIN}}})
    tokens = registry.TokenServer(authority)
    with registry.serve_with_tokens(storage, tokens, "team/app") as (host, server):
        digests = (f"sha256:{images.sha256(blob)}" for blob in OCI_IMAGE.blobs)
        paths = ["manifests/oci", *(f"blobs/{digest}" for digest in digests)]
        for path in paths:
            hostile.answer(path, redirect(f"http://{host}/v2/team/app/{path}"))
        manifest = redirect(f"http://{host}/v2/team/app/manifests/oci")
        hostile.answer("manifests/oci", in_turn(challenge("Basic realm=r"), manifest))
        check(open_image(hostile.name, AMD64, session))
        assert len(server.seen) == 1
        assert server.seen[0].headers["Authorization"] is None


def test_token_from_a_file_of_this_machine(
    hostile: Registry, session: Session, tmp_path: Path
) -> None:
    secret = write(tmp_path, "secret.json", b'{"token": "secret"}').as_uri()
    hostile.answer("manifests/oci", challenge(f'Bearer realm="{secret}"'))
    with pytest.raises(NetworkError, match="not an https URL"):
        open_image(hostile.name, AMD64, session)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("", NetworkError),
        ("Basic", NetworkError),
        ("Bearer", NetworkError),
        ("Bearer realm", NetworkError),
        ('Bearer realm="http://["', FledgeError),
        ("bearer " + "x" * 60_000, NetworkError),
        ('Bearer realm="http://HOST/nothing"', NetworkError),
        ('Bearer realm="http://HOST/list"', CorruptError),
        ('Bearer realm="http://HOST/empty"', CorruptError),
        ('Bearer realm="http://HOST/header"', CorruptError),
        ('Bearer realm="http://HOST/number"', CorruptError),
    ],
)
def test_challenges(
    value: str, error: type[FledgeError], hostile: Registry, session: Session, tmp_path: Path
) -> None:
    scope = "?scope=repository%3Ateam%2Fapp%3Apull"
    for name, answer in {
        "list": [],
        "empty": {},
        "header": {"token": "a\r\nX: y"},
        "number": {"token": 1},
    }.items():
        hostile.server.answers[f"/{name}{scope}"] = status(200, json.dumps(answer).encode())
    hostile.answer("manifests/oci", challenge(value.replace("HOST", hostile.name.host)))
    write(tmp_path, "netrc", b"machine 127.0.0.1 login alice password wonder")
    with pytest.raises(error):
        open_image(hostile.name, AMD64, session)
    asked = [request for request in hostile.server.seen if request.path != "/v2/"]
    assert {request.headers["Authorization"] for request in asked} == {None}


def test_plain_http_elsewhere_is_for_the_user_to_allow(
    hostile: Registry, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Through a proxy, because tests have no name server.
    image = images.image(TARS[0])
    for path, body in {
        "/v2/": b"{}",
        "/v2/team/app/manifests/oci": image.body,
        **{f"/v2/team/app/blobs/sha256:{images.sha256(b)}": b for b in image.blobs},
    }.items():
        hostile.server.answers[f"http://registry.example{path}"] = status(200, body)
    monkeypatch.setenv("http_proxy", hostile.server.url(""))
    monkeypatch.setenv("https_proxy", hostile.server.url(""))
    with pytest.raises(NetworkError):
        open_image(app("registry.example"), AMD64, session)
    monkeypatch.setenv("FLEDGE_INSECURE_REGISTRIES", "other:5000, registry.example")
    assert blobs(open_image(app("registry.example"), AMD64, session)) == [image.blobs[1]]


def found(text: str = "127.0.0.1:1/team/app") -> credentials.Search:
    name = parse(text, Path())
    assert isinstance(name, Name)
    return credentials.find(name, Settings(os.environ))


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ([], ConfigError, "not a JSON object"),
        ({"auths": []}, None, ""),
        ({"auths": ["127.0.0.1:1"]}, ConfigError, "auths is not a JSON object"),
        ({"auths": {"127.0.0.1:1": 1}}, ConfigError, "auths 127.0.0.1:1 is not"),
        ({"auths": {"127.0.0.1:1": {"auth": "%%"}}}, ConfigError, "base64"),
        ({"auths": {"127.0.0.1:1": {"auth": "YWxpY2U="}}}, ConfigError, "base64"),
        ({"auths": {"127.0.0.1:1": {"auth": 1}}}, ConfigError, "not a string"),
        ({"auths": {"127.0.0.1:1": {"auth": ""}}}, None, ""),
        ({"credsStore": "../x"}, ConfigError, "not the name"),
        ({"credsStore": "missing"}, HostError, "not installed"),
        ({"credHelpers": {"elsewhere": "missing"}}, None, ""),
    ],
)
def test_file_without_a_login(
    config: object,
    error: type[FledgeError] | None,
    message: str,
    docker_config: Callable[[object], Path],
) -> None:
    docker_config(config)
    search = found()
    assert search.credentials is None
    assert [type(problem) for problem in search.problems] == ([error] if error else [])
    assert all(message in problem.message for problem in search.problems)


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        (HELPED, None, ""),
        ("echo locked; exit 1", HostError, "locked"),
        ("echo '[]'", HostError, "not of the expected form"),
        ("echo '{'", HostError, "not of the expected form"),
        ("echo credentials not found in native keychain; exit 1", None, ""),
    ],
)
def test_credential_helper(
    line: str,
    error: type[FledgeError] | None,
    message: str,
    docker_config: Callable[[object], Path],
    helper: Callable[[str], None],
) -> None:
    docker_config({"credHelpers": {"127.0.0.1:1": "test"}})
    helper(line)
    search = found()
    known = credentials.Credentials("alice", "wonder", "docker-credential-test")
    assert search.credentials == (known if line == HELPED else None)
    assert [type(problem) for problem in search.problems] == ([error] if error else [])
    assert all(message in problem.message for problem in search.problems)


ALICE = {"auth": LOGIN}
BOB = {"username": "bob", "password": "builder"}


@pytest.mark.parametrize(
    ("text", "auths", "username"),
    [
        ("nginx", {"https://index.docker.io/v1/": ALICE}, "alice"),
        ("nginx", {"docker.io": ALICE, "quay.io": BOB}, "alice"),
        ("nginx", {"index.docker.io": ALICE}, "alice"),
        ("nginx", {"docker.io/library": ALICE, "docker.io": BOB}, "alice"),
        ("quay.io/team/app", {"quay.io": BOB}, "bob"),
        ("quay.io/team/app", {"quay.io/": BOB}, "bob"),
        ("quay.io/team/app", {"QUAY.io": BOB}, "bob"),
        ("quay.io/team/app", {"https://quay.io": BOB}, "bob"),
        ("quay.io/team/app", {"https://quay.io/v2/": BOB}, "bob"),
        ("quay.io/team/app", {"quay.io": ALICE, "quay.io/team": BOB}, "bob"),
        ("quay.io/team/app", {"quay.io": ALICE, "quay.io/team/app": BOB}, "bob"),
        ("quay.io/team/app", {"quay.io/team/app": {}, "quay.io": BOB}, "bob"),
        ("quay.io/team/app", {"quay.io/tea": ALICE, "quay.io": BOB}, "bob"),
        ("quay.io/team/app", {"quay.io/other": BOB}, "bob"),
        ("quay.io/team/app", {"quay.io:443": BOB, "notquay.io": BOB, "quay": BOB}, None),
        (
            "quay.io/team/app",
            {"quay.io": {"auth": LOGIN[:4] + "\r\n " + LOGIN[4:] + "\n"}},
            "alice",
        ),
    ],
)
def test_login_of_an_entry(
    text: str,
    auths: object,
    username: str | None,
    docker_config: Callable[[object], Path],
) -> None:
    docker_config({"auths": auths})
    login = found(text).credentials
    assert (login and login.username) == username
    if login:
        assert login.password == {"alice": "wonder", "bob": "builder"}[login.username]


LOGIN_FILES = (
    "elsewhere.json",
    "docker/config.json",
    "run/containers/auth.json",
    "home/.config/containers/auth.json",
)


def test_order_of_files_with_logins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / LOGIN_FILES[0]))
    for login_file in reversed(LOGIN_FILES):
        path = write(
            tmp_path, login_file, json.dumps({"auths": {"127.0.0.1:1/team": ALICE}}).encode()
        )
        assert found().credentials == credentials.Credentials("alice", "wonder", str(path))
    path.write_text("{")
    search = found()
    assert search.credentials
    assert search.credentials.source == str(tmp_path / LOGIN_FILES[1])
    assert len(search.problems) == 1


@real
@pytest.mark.parametrize("program", ["skopeo", "buildah", "podman"])
@pytest.mark.parametrize("variable", [None, "REGISTRY_AUTH_FILE"])
def test_login_of_podman_and_its_relatives(
    program: str,
    variable: str | None,
    htpasswd: str,
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "run").mkdir()
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "login.json"))
    login = [program, "login", "--tls-verify=false", "-u", "alice", "-p", "wonder", htpasswd]
    subprocess.run(login, check=True, stdout=subprocess.DEVNULL)
    check(open_image(app(htpasswd), AMD64, session))


@pytest.mark.parametrize(
    "config",
    [
        {"credsStore": "missing"},
        {"credsStore": "test"},
        {"auths": {"HOST": {"identitytoken": "expired"}}},
        {"auths": {"HOST": {"auth": "%%"}}},
        [],
    ],
)
def test_useless_login_does_not_stop_a_public_image(
    config: object,
    hostile: Registry,
    session: Session,
    notes: Notes,
    docker_config: Callable[[object], Path],
    helper: Callable[[str], None],
) -> None:
    host = hostile.name.host
    docker_config(json.loads(json.dumps(config).replace("HOST", host)))
    helper("echo Cannot autolaunch D-Bus without X11; exit 1")
    image = images.image(TARS[0])
    hostile.hold(image)
    wanted = challenge(f"Bearer realm=http://{host}/token,service=s")
    hostile.answer("manifests/oci", in_turn(wanted, status(200, image.body)))
    path = "/token?service=s&scope=repository%3Ateam%2Fapp%3Apull"
    hostile.server.answers[path] = status(200, b'{"token": "t"}')
    hostile.server.answers["/token"] = status(401)
    assert blobs(open_image(hostile.name, AMD64, session)) == [image.blobs[1]]
    assert len(notes.notes) == 1
    # If the image is not public, the problem is the error.
    hostile.server.answers[path] = status(401)
    hostile.answer("manifests/oci", wanted)
    with pytest.raises(FledgeError, match="denies access to team/app with") as caught:
        open_image(hostile.name, AMD64, session)
    problem = notes.notes[0].removeprefix(f"no login for {host}: ")
    assert problem in caught.value.message or "identity token" in caught.value.message


@pytest.mark.parametrize("by_helper", [False, True])
def test_identity_token(
    by_helper: bool,
    hostile: Registry,
    session: Session,
    docker_config: Callable[[object], Path],
    helper: Callable[[str], None],
) -> None:
    host = hostile.name.host
    # As `az acr login` writes it: the user name is made of zeros and has no password.
    login = {"auth": base64.b64encode(b"0000-00:").decode(), "identitytoken": "re+fresh"}
    docker_config({"credsStore": "test"} if by_helper else {"auths": {host: login}})
    helper("""echo '{"Username": "<token>", "Secret": "re+fresh"}'""")
    image = images.image(TARS[0])
    hostile.hold(image)
    wanted = challenge(f'Bearer realm="http://{host}/token",service="s"')
    hostile.answer("manifests/oci", in_turn(wanted, status(200, image.body)))
    hostile.server.answers["/token"] = status(200, b'{"access_token": "t"}')
    assert blobs(open_image(hostile.name, AMD64, session)) == [image.blobs[1]]
    asked = [request for request in hostile.server.seen if request.path == "/token"]
    assert [(request.headers["Authorization"], parse_qs(request.body)) for request in asked] == [
        (
            None,
            {
                b"grant_type": [b"refresh_token"],
                b"refresh_token": [b"re+fresh"],
                b"client_id": [b"fledge"],
                b"service": [b"s"],
                b"scope": [b"repository:team/app:pull"],
            },
        )
    ]
    # It is not sent where the token server redirects to.
    with Server() as other:
        hostile.server.answers["/token"] = status(307, headers={"Location": other.url("/token")})
        hostile.answer("manifests/oci", wanted)
        with pytest.raises(NetworkError):
            open_image(hostile.name, AMD64, session)
        assert other.seen == []
