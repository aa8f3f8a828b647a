"""Attaches documents to a manifest in a registry, and finds them again.

OCI distribution-spec, "Listing Referrers" and "Pushing Manifests with Subject". A registry that
lacks the list is helped out by the clients: they keep it as an index under a tag.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from random import uniform
from typing import Any
from urllib.parse import quote

import msgspec

from fledge.errors import CorruptError, NetworkError
from fledge.net.json_document import JsonObject, parse_object
from fledge.oci.artifact import (
    EMPTY,
    EMPTY_CONFIG,
    INDEX_TYPE,
    MANIFEST_TYPE,
    TITLE,
    descriptor,
    dump,
    to_json,
)
from fledge.oci.manifest import Descriptor
from fledge.oci.repository import NoManifestError, Repository
from fledge.report import Transfer
from fledge.tree.digest import Digest

MAX_REFERRERS = 1000
"""Documents of one type that a manifest may have. Further ones are not looked at."""
MAX_ENTRIES = 1 << 14
"""Entries of one page of a list of referrers."""

MIN_WAIT = 0.5
"""Seconds to wait at least before looking whether another writer has undone an entry."""
MAX_WRITES = 20
"""How often to write an entry again that others have undone."""


class ForeignDocumentError(CorruptError):
    """What is attached is no single document, or a larger one than the caller reads."""


class Document(msgspec.Struct, frozen=True):
    """A document to attach to a manifest."""

    media_type: str
    data: bytes
    name: str
    """The name of a file that has it."""
    annotations: Mapping[str, str] = {}


def attach(repository: Repository, subject: Descriptor, documents: Sequence[Document]) -> None:
    """Attach documents to a manifest. Attaching the same document again changes nothing."""
    unlisted = []
    for document in documents:
        blob = Descriptor(document.media_type, Digest.of(document.data), len(document.data))
        for each, data in ((EMPTY_CONFIG, EMPTY), (blob, document.data)):
            if not repository.has_blob(each.digest):
                repository.upload(data, each.digest, Transfer())
        manifest = dump(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "artifactType": document.media_type,
                "config": to_json(EMPTY_CONFIG),
                "layers": [to_json(blob, {TITLE: document.name})],
                "subject": to_json(subject),
                "annotations": dict(document.annotations),
            }
        )
        entry = Descriptor(MANIFEST_TYPE, Digest.of(manifest), len(manifest))
        answer = repository.put_manifest(str(entry.digest), MANIFEST_TYPE, manifest)
        if "OCI-Subject" not in answer.headers:
            listed = to_json(entry, document.annotations)
            unlisted.append({**listed, "artifactType": document.media_type})
    if unlisted:
        _add_to_tag(repository, subject.digest, unlisted)


def find(repository: Repository, subject: Digest, media_type: str) -> list[Descriptor]:
    """Return the manifests that attach a document of that type, in the order of their digests."""
    found: dict[Digest, Descriptor] = {}
    for each in _entries(repository, subject, f"?artifactType={quote(media_type, safe='')}"):
        # Not every registry filters the list.
        if each.text("artifactType", "") == media_type:
            manifest = descriptor(each)
            found[manifest.digest] = manifest
        if len(found) == MAX_REFERRERS:
            break
    return [found[digest] for digest in sorted(found)]


def read(repository: Repository, manifest: Descriptor, limit: int) -> bytes:
    """Read a document that a manifest attaches.

    Raises `ForeignDocumentError` if it has more than ``limit`` bytes or is no single document,
    `CorruptError` if it is damaged.
    """
    raw = repository.read_document("manifests", "referrer", manifest)
    where = f"{repository.name}: {manifest.digest}"
    layers = parse_object(raw, where).members("layers", MAX_ENTRIES)
    if len(layers) != 1:
        raise ForeignDocumentError(f"{where}: has {len(layers)} layers, not one")
    blob = descriptor(layers[0])
    if blob.size > limit:
        raise ForeignDocumentError(f"{where}: the document has more than {limit} bytes")
    return repository.read_blob("document", blob, limit)


def delete(repository: Repository, subject: Digest) -> None:
    """Delete what is attached to a manifest, and the list of it under the tag."""
    for each in list(_entries(repository, subject)):
        repository.delete_manifest(descriptor(each).digest)
    with suppress(NoManifestError):
        repository.delete_manifest(Digest.of(repository.read_manifest(_tag(subject))))


def _entries(repository: Repository, subject: Digest, query: str = "") -> Iterator[JsonObject]:
    """Yield the entries of the list of referrers: the registry's own, or that under the tag."""
    where = f"{repository.name}: the list of referrers"
    has_list = False
    for page in repository.pages(f"referrers/{subject}{query}"):
        has_list = True
        yield from parse_object(page, where).members("manifests", MAX_ENTRIES)
    if not has_list:
        with suppress(NoManifestError):
            page = repository.read_manifest(_tag(subject))
            yield from parse_object(page, where).members("manifests", MAX_ENTRIES)


def _tag(subject: Digest) -> str:
    """Return the tag of the list (distribution-spec, "Referrers Tag Schema")."""
    return f"sha256-{subject.hex}"


def _add_to_tag(
    repository: Repository, subject: Digest, new: Sequence[Mapping[str, object]]
) -> None:
    """Add entries to the index under the tag, and keep those of others as they are.

    A registry has no way to write only if nothing has changed. So whoever writes waits longer than
    another one takes between reading and writing, and looks: if that one had read the index before
    these entries were in it, it has overwritten it by now, and they are written again.
    """
    tag = _tag(subject)
    for _ in range(MAX_WRITES):
        start = time.monotonic()
        listed: set[str] = set()
        index: dict[str, Any] = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}
        with suppress(NoManifestError):
            found = parse_object(repository.read_manifest(tag), f"{repository.name}: {tag}")
            entries = found.members("manifests", MAX_ENTRIES)
            listed = {each.text("digest", "") for each in entries}
            index = found.plain()
        missing = [each for each in new if each["digest"] not in listed]
        if not missing:
            return
        index = {**index, "manifests": [*index["manifests"], *missing]}
        repository.put_manifest(tag, INDEX_TYPE, dump(index))
        taken = time.monotonic() - start
        # Not all alike, or two writers would go on undoing each other.
        time.sleep(max(MIN_WAIT, 4 * taken) * uniform(1, 1.5))  # noqa: S311 - no secret
    raise NetworkError(
        f"{repository.name}: other writers keep undoing the entry in the tag {tag}",
        "Try again when nobody else pushes to this artifact.",
    )
