"""A registry that answers at random in the odd ways that were found in the field."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from random import Random
from urllib.parse import urlsplit

from tests.support.httpd import Answer, Exchange, Server, content, redirect, status
from tests.support.odd_images import Documents, files

REPOSITORY = "team/app"
TOKEN = "t0ken"  # noqa: S105 -- of a server of the test

CHALLENGES = (
    'Bearer realm="{realm}",service="s",scope="repository:team/app:pull"',
    'bearer Realm="{realm}", Service="s", Scope="repository:team/app:pull"',
    "Bearer realm={realm},service=s",
    'Bearer realm="{realm}",service="s",scope="",error="invalid_token"',
    'Bearer realm="{realm}",service="",scope=""',
    'Bearer   realm="{realm}"  ,  service="s"',
    'Bearer realm = "{realm}", service = "s"',
    'BEARER REALM="{realm}"',
    'Bearer realm="{realm}",service="a, \\"quoted\\" one"',
    'Bearer service="s",scope="repository:team/app:pull,push",realm="{realm}"',
    'Bearer error="insufficient_scope",realm="{realm}",service="s"',
    'Basic realm="r", Bearer realm="{realm}",service="s"',
    'Bearer realm="{realm}",service="s", Basic realm="r"',
    'Negotiate, Bearer realm="{realm}",service="s"',
    'Bearer realm="{realm}?account=x",service="s"',
    "Bearer",
    "",
)
MANIFEST_TYPES = (None, "", "text/plain", "application/json", "application/octet-stream")
"""Content types of documents; None is that of the document."""
PARAMETERS = ("", "", "; charset=utf-8", ";charset=UTF-8")
BLOB_TYPES = ("application/octet-stream", "text/html", "")


@dataclass
class OddRegistry(dict[str, Answer]):
    """The answers of a `Server` for an image with the tag "odd"."""

    made: dict[str, bytes]
    chosen: Random
    server: Server
    challenge: str | None = None
    """None: nobody has to log in."""
    parts: list[str] = field(default_factory=list)

    def get(self, path: str, default: object = None) -> Answer:
        return self.answer

    def answer(self, exchange: Exchange) -> None:
        path = urlsplit(exchange.path).path
        if path == "/token":
            name = self.chosen.choice(["token", "access_token"])
            exchange.reply(200, json.dumps({name: TOKEN, "expires_in": 300}).encode())
        elif path.startswith("/elsewhere/"):
            self.send(path.rpartition("/")[2], exchange)
        elif self.challenge is not None and (
            exchange.headers.get("Authorization") != f"Bearer {TOKEN}"
        ):
            value = self.challenge.format(realm=self.server.url("/token"))
            status(401, b"{}", {"WWW-Authenticate": value})(exchange)
        elif path == "/v2/":
            exchange.reply(200, b"{}")
        elif path.startswith(f"/v2/{REPOSITORY}/manifests/"):
            self.send_document(path.rpartition("/")[2], exchange)
        elif path.startswith(f"/v2/{REPOSITORY}/blobs/"):
            digest = path.rpartition("/")[2]
            if "redirect" in self.parts:
                redirect(self.server.url(f"/elsewhere/{digest}"))(exchange)
            else:
                self.send(digest, exchange)
        else:
            exchange.reply(404, b"{}")

    def send_document(self, name: str, exchange: Exchange) -> None:
        path = "index.json" if name == "odd" else f"blobs/{name.replace(':', '/')}"
        if path not in self.made:
            exchange.reply(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}')
            return
        data = self.made[path]
        media_type = json.loads(data).get("mediaType", "")
        if "document type" in self.parts:
            media_type = self.chosen.choice(MANIFEST_TYPES) or media_type
        headers = (
            {"Content-Type": media_type + self.chosen.choice(PARAMETERS)} if media_type else {}
        )
        status(200, data, headers)(exchange)

    def send(self, digest: str, exchange: Exchange) -> None:
        data = self.made[f"blobs/{digest.replace(':', '/')}"]
        content(data, {"Content-Type": self.chosen.choice(BLOB_TYPES)})(exchange)


def odd_registry(image: Documents, chosen: Random, server: Server) -> OddRegistry:
    """Make the answers of ``server`` those of a registry that has the image."""
    made = files(image)
    parts = [part for part in ("redirect", "document type") if chosen.random() < 0.3]
    challenge = chosen.choice(CHALLENGES) if chosen.random() < 0.8 else None
    answers = OddRegistry(made, chosen, server, challenge, parts)
    server.answers = answers
    return answers
