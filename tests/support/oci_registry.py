"""A registry in memory that follows the OCI distribution-spec to the letter.

It has what Debian's docker-registry lacks: the list of referrers (``OCI-Subject``, filters, pages),
pieces of uploads that must follow one another, and locations that change with each answer. What the
specification leaves open it does in the way that is harder for a client.

    with OciRegistry().serve() as registry:
        push("web.img", f"{registry.host}/web:1")
        registry.lies[digest] = b"other bytes"
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from tests.support.httpd import Answer, Exchange, Request, Server

PATH = re.compile(
    r"/v2/(?P<name>.+?)/(?P<kind>manifests|blobs/uploads|blobs|referrers|tags)/(?P<rest>.*)"
)
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class Repository:
    """What a repository has."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    """The media types and the bytes, by digest."""
    tags: dict[str, str] = field(default_factory=dict)
    """The digests of manifests, by tag."""

    def copy(self) -> Repository:
        return Repository(dict(self.blobs), dict(self.manifests), dict(self.tags))


@dataclass
class _Upload:
    data: bytearray = field(default_factory=bytearray)
    state: str = ""
    """What the next location must have."""


@dataclass
class OciRegistry:
    """A registry. ``host`` is where it listens while it is served."""

    page: int = 2
    """Entries of one page of a list."""
    min_piece: int = 0
    """The least bytes of a piece of an upload but the last, as ``OCI-Chunk-Min-Length``."""
    has_referrers: bool = True
    """Whether it has the list of referrers; without, clients keep it under a tag."""
    lies: dict[str, bytes] = field(default_factory=dict)
    """What to send in place of the manifest or blob with that digest or tag."""
    answers: dict[str, Answer] = field(default_factory=dict)
    """Answers in place of its own, by ``METHOD PATH``."""
    repositories: dict[str, Repository] = field(default_factory=dict)
    host: str = ""

    @contextmanager
    def serve(self) -> Iterator[OciRegistry]:
        """Listen on loopback until the end of the block."""
        self._uploads: dict[str, _Upload] = {}
        with Server(answers=_Answers(self)) as server:
            self._server = server
            self.host = server.url("").removeprefix("http://")
            yield self

    @property
    def seen(self) -> list[Request]:
        """All requests so far."""
        return self._server.seen

    def repository(self, name: str) -> Repository:
        return self.repositories.setdefault(name, Repository())

    def put(self, name: str, manifest: dict[str, Any], tag: str = "") -> str:
        """Store a manifest without any check, and return its digest."""
        raw = json.dumps(manifest).encode()
        own = self.repository(name)
        own.manifests[digest_of(raw)] = (manifest.get("mediaType", MANIFEST), raw)
        if tag:
            own.tags[tag] = digest_of(raw)
        return digest_of(raw)

    def put_blob(self, name: str, data: bytes, media_type: str = "") -> dict[str, Any]:
        """Store a blob, and return its descriptor."""
        self.repository(name).blobs[digest_of(data)] = data
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}

    def manifest(self, name: str, reference: str) -> dict[str, Any]:
        """Return a manifest as the registry has it."""
        own = self.repository(name)
        parsed: dict[str, Any] = json.loads(own.manifests[own.tags.get(reference, reference)][1])
        return parsed

    def answer(self, exchange: Exchange) -> None:
        """Answer one request."""
        parts = urlsplit(exchange.path)
        if own := self.answers.get(f"{exchange.command} {parts.path}"):
            own(exchange)
            return
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if parts.path == "/v2/":
            exchange.reply(200, b"{}")
            return
        found = PATH.fullmatch(parts.path)
        if not found:
            _refuse(exchange, 404, "NAME_UNKNOWN")
            return
        name, kind, rest = found["name"], found["kind"], found["rest"]
        handler: Callable[[Exchange, str, str, dict[str, str]], None] = {
            "manifests": self._manifests,
            "blobs": self._blobs,
            "blobs/uploads": self._upload,
            "referrers": self._referrers,
            "tags": self._tags,
        }[kind]
        handler(exchange, name, rest, query)

    def _blobs(self, exchange: Exchange, name: str, digest: str, query: dict[str, str]) -> None:
        blobs = self.repository(name).blobs
        if digest not in blobs:
            _refuse(exchange, 404, "BLOB_UNKNOWN")
        elif exchange.command == "DELETE":
            del blobs[digest]
            exchange.reply(202)
        elif exchange.command in ("GET", "HEAD"):
            _send(exchange, self.lies.get(digest, blobs[digest]), "application/octet-stream")
        else:
            _refuse(exchange, 405, "UNSUPPORTED")

    def _upload(self, exchange: Exchange, name: str, place: str, query: dict[str, str]) -> None:
        if exchange.command == "POST" and not place:
            place = secrets.token_hex(8)
            self._uploads[place] = _Upload()
            more = {"OCI-Chunk-Min-Length": str(self.min_piece)} if self.min_piece else {}
            self._go_on(exchange, name, place, 202, more)
            return
        upload = self._uploads.get(place)
        if upload is None:
            _refuse(exchange, 404, "BLOB_UPLOAD_UNKNOWN")
        elif exchange.command == "GET":
            self._go_on(exchange, name, place, 204)
        elif exchange.command == "DELETE":
            del self._uploads[place]
            exchange.reply(204)
        elif query.get("state") != upload.state:
            _refuse(exchange, 400, "BLOB_UPLOAD_INVALID")
        elif not self._fits(exchange, upload):
            self._go_on(exchange, name, place, 416)
        elif exchange.command == "PATCH":
            if len(exchange.body) < self.min_piece:
                _refuse(exchange, 400, "SIZE_INVALID")
                return
            upload.data += exchange.body
            self._go_on(exchange, name, place, 202)
        elif exchange.command == "PUT":
            data = bytes(upload.data + exchange.body)
            del self._uploads[place]
            if digest_of(data) != query.get("digest"):
                _refuse(exchange, 400, "DIGEST_INVALID")
                return
            self.repository(name).blobs[digest_of(data)] = data
            exchange.reply(201, headers={"Location": f"/v2/{name}/blobs/{digest_of(data)}"})
        else:
            _refuse(exchange, 405, "UNSUPPORTED")

    @staticmethod
    def _fits(exchange: Exchange, upload: _Upload) -> bool:
        """Whether a piece follows what is there. One without a range must be the whole blob."""
        given = exchange.headers.get("Content-Range")
        if not exchange.body:
            return given is None
        if given is None:
            return exchange.command == "PUT" and not upload.data
        start = len(upload.data)
        return given == f"{start}-{start + len(exchange.body) - 1}"

    def _go_on(
        self,
        exchange: Exchange,
        name: str,
        place: str,
        code: int,
        more: dict[str, str] | None = None,
    ) -> None:
        upload = self._uploads[place]
        upload.state = secrets.token_urlsafe(8)
        location = f"/v2/{name}/blobs/uploads/{place}?state={upload.state}&x=%2F"
        headers = {"Location": location, **(more or {})}
        if upload.data:
            headers["Range"] = f"0-{len(upload.data) - 1}"
        exchange.reply(code, headers=headers)

    def _manifests(self, exchange: Exchange, name: str, ref: str, query: dict[str, str]) -> None:
        own = self.repository(name)
        if exchange.command == "PUT":
            self._put_manifest(exchange, own, name, ref)
            return
        digest = own.tags.get(ref, ref)
        if digest not in own.manifests:
            _refuse(exchange, 404, "MANIFEST_UNKNOWN")
        elif exchange.command == "DELETE":
            if ref in own.tags:
                del own.tags[ref]
            else:
                del own.manifests[digest]
                own.tags = {tag: each for tag, each in own.tags.items() if each != digest}
            exchange.reply(202)
        elif exchange.command in ("GET", "HEAD"):
            media_type, raw = own.manifests[digest]
            body = self.lies.get(ref, self.lies.get(digest, raw))
            exchange.reply(200, body, {"Content-Type": media_type, "Docker-Content-Digest": digest})
        else:
            _refuse(exchange, 405, "UNSUPPORTED")

    def _put_manifest(self, exchange: Exchange, own: Repository, name: str, ref: str) -> None:
        raw, media_type = exchange.body, exchange.headers["Content-Type"]
        document = json.loads(raw)
        digest = digest_of(raw)
        if document.get("mediaType", media_type) != media_type:
            _refuse(exchange, 400, "MANIFEST_INVALID")
            return
        if ref.startswith("sha256:") and ref != digest:
            _refuse(exchange, 400, "DIGEST_INVALID")
            return
        blobs = [document["config"], *document["layers"]] if "layers" in document else []
        missing = [each for each in blobs if each["digest"] not in own.blobs]
        if missing or any(e["digest"] not in own.manifests for e in document.get("manifests", ())):
            # The subject may be missing, but nothing else. Both 400 and 404 are in use.
            _refuse(exchange, 404, "MANIFEST_BLOB_UNKNOWN")
            return
        own.manifests[digest] = (media_type, raw)
        if not ref.startswith("sha256:"):
            own.tags[ref] = digest
        headers = {"Location": f"/v2/{name}/manifests/{digest}", "Docker-Content-Digest": digest}
        if self.has_referrers and "subject" in document:
            headers["OCI-Subject"] = document["subject"]["digest"]
        exchange.reply(201, headers=headers)

    def _referrers(
        self, exchange: Exchange, name: str, subject: str, query: dict[str, str]
    ) -> None:
        if not self.has_referrers:
            _refuse(exchange, 404, "NOT_FOUND")
            return
        entries = []
        for digest, (media_type, raw) in sorted(self.repository(name).manifests.items()):
            document = json.loads(raw)
            if document.get("subject", {}).get("digest") == subject:
                entries.append(
                    {
                        "mediaType": media_type,
                        "digest": digest,
                        "size": len(raw),
                        "artifactType": document.get("artifactType")
                        or document["config"]["mediaType"],
                        "annotations": document.get("annotations", {}),
                    }
                )
        headers = {"Content-Type": INDEX}
        if wanted := query.get("artifactType"):
            entries = [each for each in entries if each["artifactType"] == wanted]
            headers["OCI-Filters-Applied"] = "artifactType"
        start = int(query.get("from", 0))
        if start + self.page < len(entries):
            filtered = f"&artifactType={quote(wanted, safe='')}" if wanted else ""
            following = f"/v2/{name}/referrers/{subject}?from={start + self.page}{filtered}"
            headers["Link"] = f'<{following}>; rel="next"'
        body = {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": entries[start : start + self.page],
        }
        exchange.reply(200, json.dumps(body).encode(), headers)

    def _tags(self, exchange: Exchange, name: str, rest: str, query: dict[str, str]) -> None:
        if name not in self.repositories or rest != "list":
            _refuse(exchange, 404, "NAME_UNKNOWN")
            return
        tags = sorted(each for each in self.repository(name).tags if each > query.get("last", ""))
        count = min(int(query.get("n", self.page)), self.page)
        headers = {}
        if count < len(tags):
            following = f"/v2/{name}/tags/list?n={count}&last={tags[count - 1]}"
            headers["Link"] = f'<{following}>; rel="next"'
        body = {"name": name, "tags": tags[:count]}
        exchange.reply(200, json.dumps(body).encode(), headers)


class _Answers(dict[str, Answer]):
    """Every path is answered by the registry."""

    def __init__(self, registry: OciRegistry) -> None:
        super().__init__()
        self._registry = registry

    def get(self, path: str, default: object = None) -> Answer:
        return self._registry.answer


def _send(exchange: Exchange, body: bytes, media_type: str) -> None:
    """Send a blob, or the part of it that a Range requests."""
    own = {"Content-Type": media_type}
    wanted = re.fullmatch(r"bytes=(\d+)-", exchange.headers.get("Range", ""))
    if not wanted:
        exchange.reply(200, body, own)
    elif (start := int(wanted[1])) >= len(body):
        exchange.reply(416, headers={"Content-Range": f"bytes */{len(body)}"})
    else:
        own["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        exchange.reply(206, body[start:], own)


def _refuse(exchange: Exchange, code: int, error: str) -> None:
    body = {"errors": [{"code": error, "message": f"the registry says {error}", "detail": {}}]}
    exchange.reply(code, json.dumps(body).encode(), {"Content-Type": "application/json"})
