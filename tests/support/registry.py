"""Debian's docker-registry on loopback, and the servers and proxies around it.

`serve` runs a registry on a folder, `push` puts an image of `tests.support.images` into it.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.httpd import Answer, Exchange, Server
from tests.support.images import Manifest, sha256

HTPASSWD = "alice:$2y$04$abcdefghijklmnopqrstuuetGRvO6QNMBbbIoo5tpQkbPXg26U9Qu\n"
"""The password is "wonder"."""


def push(host: str, repository: str, manifest: Manifest, tag: str | None = None) -> None:
    """Push a manifest and its blobs to a registry without logins."""
    api = f"http://{host}/v2/{repository}"
    for child in manifest.children:
        push(host, repository, child)
    for blob in manifest.blobs:
        begun = requests.post(f"{api}/blobs/uploads/", timeout=10)
        digest = {"digest": f"sha256:{sha256(blob)}"}
        requests.put(
            begun.headers["Location"], params=digest, data=blob, timeout=10
        ).raise_for_status()
    requests.put(
        f"{api}/manifests/{tag or f'sha256:{manifest.sha256}'}",
        data=manifest.body,
        headers={"Content-Type": manifest.media_type},
        timeout=10,
    ).raise_for_status()


@contextmanager
def serve(storage: Path, *, deletes: bool = False, **sections: object) -> Iterator[str]:
    """Run docker-registry on a folder. Yields its host and port. ``sections`` extend its config.

    It deletes manifests only if ``deletes`` says so.
    """
    if not shutil.which("docker-registry"):
        pytest.skip("needs docker-registry (Debian package docker-registry)")
    config = {
        "version": 0.1,
        "log": {"accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(storage)},
            "delete": {"enabled": deletes},
        },
        **sections,
        "http": {"addr": "127.0.0.1:0", "secret": "s", **sections.get("http", {})},  # type: ignore[dict-item]
    }
    # YAML is a superset of JSON.
    path = storage.with_name(f"registry-{time.monotonic_ns()}.yml")
    path.write_text(json.dumps(config))
    with subprocess.Popen(
        ["docker-registry", "serve", str(path)], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        said = ""
        try:
            while not (listening := re.search(r"listening on ([\d.]+:\d+)", said)):
                line = process.stderr.readline()
                assert line, f"docker-registry did not start: {said}"
                said += line
            # Nobody reads its output from here on; a full pipe would block it.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield listening[1]
        finally:
            process.terminate()
            process.wait()


@dataclass(frozen=True)
class Authority:
    """A certificate authority, and the key that a token server signs with."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fledge test CA")])
        return cls(key, _certificate(name, key.public_key(), name, key, ca=True))

    def write(self, path: Path) -> Path:
        """The certificate of the CA in a PEM file."""
        path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        return path

    def issue(self, folder: Path, first_day: int = -1, last_day: int = 1) -> dict[str, str]:
        """Make a certificate and key for 127.0.0.1, as docker-registry expects them.

        The certificate is valid from one day to another, counted from now.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
        leaf = _certificate(
            *(name, key.public_key(), self.certificate.subject, self.key),
            ca=False,
            days=(first_day, last_day),
        )
        (folder / "leaf.pem").write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
        (folder / "leaf.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return {"certificate": str(folder / "leaf.pem"), "key": str(folder / "leaf.key")}

    def sign(self, claims: dict[str, object]) -> str:
        der = self.certificate.public_bytes(serialization.Encoding.DER)
        chain = [base64.b64encode(der).decode()]
        return jwt.encode(claims, self.key, algorithm="ES256", headers={"x5c": chain})


def _certificate(
    name: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    ca: bool,
    days: tuple[int, int] = (-1, 1),
) -> x509.Certificate:
    now = datetime.now(timezone.utc)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


LEEWAY = 60
"""Seconds that docker-registry accepts a token after it has expired."""


@dataclass
class TokenServer:
    """Issues tokens that docker-registry accepts for ``lifetime`` seconds."""

    authority: Authority
    lifetime: int = 60
    logins: frozenset[str] = frozenset({""})
    """The Authorization headers that get a token. An empty one is anonymous."""
    allows: frozenset[str] = frozenset({"pull", "push"})
    """What a token may allow at most."""

    def __call__(self, exchange: Exchange) -> None:
        query = parse_qs(urlsplit(exchange.path).query)
        if exchange.headers.get("Authorization", "") not in self.logins:
            exchange.reply(401, b"{}")
            return
        kind, name, actions = query["scope"][0].split(":")
        granted = [each for each in actions.split(",") if each in self.allows]
        now = int(time.time())
        token = self.authority.sign(
            {
                "iss": "issuer",
                "sub": "",
                "aud": query["service"][0],
                "iat": now,
                "nbf": now - LEEWAY,
                "exp": now - LEEWAY + self.lifetime,
                "access": [{"type": kind, "name": name, "actions": granted}],
            }
        )
        exchange.reply(200, json.dumps({"token": token}).encode())


@contextmanager
def serve_with_tokens(
    storage: Path, tokens: TokenServer, repository: str
) -> Iterator[tuple[str, Server]]:
    """Run a registry that requires tokens, and the server that issues them."""
    with Server() as server:
        path = f"/token?service=registry&scope=repository%3A{repository.replace('/', '%2F')}%3Apull"
        server.answers[path] = server.answers[f"{path}%2Cpush"] = tokens
        auth = {
            "realm": server.url("/token"),
            "service": "registry",
            "issuer": "issuer",
            "rootcertbundle": str(tokens.authority.write(storage.with_name("tokens.pem"))),
        }
        with serve(storage, auth={"token": auth}) as host:
            yield host, server


def forward(host: str) -> Server:
    """An HTTP server that forwards requests without an own answer to a registry."""
    return Server(answers=_Forward(host))


class _Forward(dict[str, Answer]):
    def __init__(self, host: str) -> None:
        super().__init__()
        self.host = host

    def get(self, path: str, default: object = None) -> Answer:
        return super().get(path) or self.pass_on

    def pass_on(self, exchange: Exchange) -> None:
        headers = {name: value for name, value in exchange.headers.items() if name != "Host"}
        answer = requests.get(
            f"http://{self.host}{exchange.path}", headers=headers, timeout=10, allow_redirects=False
        )
        kept = {"Content-Type", "Content-Range", "WWW-Authenticate", "Location"}
        own = {name: answer.headers[name] for name in kept if name in answer.headers}
        exchange.reply(answer.status_code, answer.content, own)


@dataclass
class Wire:
    """A TCP proxy, and the bytes that went through it."""

    host: str = ""
    sent: int = 0
    """Bytes to the server."""
    received: int = 0
    """Bytes from the server."""


@contextmanager
def wire(host: str, sends: int | None = None, receives: int | None = None) -> Iterator[Wire]:
    """A TCP proxy that closes every connection after that many bytes to or from the server."""
    address, _, port = host.partition(":")
    proxy = Wire()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    client = listener.accept()[0]
                except OSError:
                    return
                threading.Thread(target=serve_one, args=(client,), daemon=True).start()

        def serve_one(client: socket.socket) -> None:
            with client, socket.create_connection((address, int(port))) as server:
                up = threading.Thread(target=pump, args=(client, server, sends, "sent"))
                up.start()
                pump(server, client, receives, "received")
                up.join()

        def pump(source: socket.socket, sink: socket.socket, most: int | None, way: str) -> None:
            done = 0
            try:
                while most is None or done < most:
                    size = 65536 if most is None else min(65536, most - done)
                    if not (piece := source.recv(size)):
                        # Whoever stops sending may still wait for an answer.
                        sink.shutdown(socket.SHUT_WR)
                        return
                    sink.sendall(piece)
                    done += len(piece)
                    setattr(proxy, way, getattr(proxy, way) + len(piece))
            except OSError:
                pass
            for each in (source, sink):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

        threading.Thread(target=accept, daemon=True).start()
        proxy.host = f"127.0.0.1:{listener.getsockname()[1]}"
        yield proxy
        listener.shutdown(socket.SHUT_RDWR)


@contextmanager
def cutting(host: str, after: int) -> Iterator[str]:
    """A TCP proxy that closes every connection after that many bytes from the server."""
    with wire(host, receives=after) as proxy:
        yield proxy.host
