"""Documents attached to manifests: by the list of the registry, and under the fallback tag."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fledge.errors import CorruptError, NetworkError
from fledge.host.settings import Settings
from fledge.oci import referrers
from fledge.oci.artifact import EMPTY_CONFIG, MANIFEST_TYPE, dump, to_json
from fledge.oci.login import PUSH
from fledge.oci.manifest import Descriptor
from fledge.oci.reference import Name
from fledge.oci.referrers import Document, ForeignDocumentError
from fledge.oci.repository import Repository
from fledge.report import Reporter, Transfer
from fledge.session import Session
from fledge.store.cache import Cache
from fledge.tree.digest import Digest
from tests.support import oci_registry, registry
from tests.support.oci_registry import OciRegistry

pytestmark = pytest.mark.slow

real = pytest.mark.real

TYPE = "application/vnd.example.note"
OTHER = "application/vnd.example.other"


def note(text: str, media_type: str = TYPE) -> Document:
    return Document(media_type, text.encode(), "note.txt", {"org.example.n": text})


def open_repository(host: str, cache: Path, name: str = "web") -> Repository:
    session = Session(Settings(os.environ), Cache(cache), Reporter(), backoff=0)
    return Repository.open(Name(host, name, "1"), session, PUSH)


def put_subject(repository: Repository, text: str = "subject") -> Descriptor:
    """Store a manifest, and return its descriptor."""
    if not repository.has_blob(EMPTY_CONFIG.digest):
        repository.upload(b"{}", EMPTY_CONFIG.digest, Transfer())
    manifest = dump(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": to_json(EMPTY_CONFIG),
            "layers": [to_json(EMPTY_CONFIG)],
            "annotations": {"text": text},
        }
    )
    digest = Digest.of(manifest)
    repository.put_manifest(str(digest), MANIFEST_TYPE, manifest)
    return Descriptor(MANIFEST_TYPE, digest, len(manifest))


def texts(repository: Repository, subject: Descriptor, media_type: str = TYPE) -> set[str]:
    """Return the documents that are attached."""
    found = referrers.find(repository, subject.digest, media_type)
    assert found == sorted(found, key=lambda each: each.digest)
    return {referrers.read(repository, each, 100).decode() for each in found}


@pytest.fixture(params=["list", "tag", pytest.param("docker-registry", marks=real)])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Repository]:
    if request.param == "docker-registry":
        with registry.serve(tmp_path / "storage", deletes=True) as host:
            yield open_repository(host, tmp_path / "cache")
    else:
        with OciRegistry(has_referrers=request.param == "list").serve() as served:
            yield open_repository(served.host, tmp_path / "cache")


def test_attach_and_find(repository: Repository) -> None:
    subject, another = put_subject(repository), put_subject(repository, "another")
    assert texts(repository, subject) == set()
    referrers.attach(repository, subject, [note("one"), note("two"), note("x", OTHER)])
    referrers.attach(repository, subject, [note("two"), note("three")])
    referrers.attach(repository, another, [note("four")])
    assert texts(repository, subject) == {"one", "two", "three"}
    assert texts(repository, subject, OTHER) == {"x"}
    assert texts(repository, another) == {"four"}


def test_subject_need_not_be_there(repository: Repository) -> None:
    subject = Descriptor(MANIFEST_TYPE, Digest.of(b"later"), 5)
    referrers.attach(repository, subject, [note("early")])
    assert texts(repository, subject) == {"early"}


def test_delete(repository: Repository) -> None:
    subject = put_subject(repository)
    referrers.attach(repository, subject, [note("one"), note("x", OTHER)])
    referrers.delete(repository, subject.digest)
    assert texts(repository, subject) == texts(repository, subject, OTHER) == set()


FOREIGN = {
    "mediaType": oci_registry.MANIFEST,
    "digest": oci_registry.digest_of(b"{}"),
    "size": 2,
    "artifactType": "application/vnd.example",
    "annotations": {"a": "ü", "b": "x\ny"},
    "platform": {"os": "plan9", "os.features": ["é"]},
    "org.example.unknown": {"deep": [1, 2.5, None, True, "\x00"]},
}
"""An entry that another client has made, with members that fledge does not know."""


def test_tag_keeps_what_others_wrote(tmp_path: Path) -> None:
    with OciRegistry(has_referrers=False).serve() as served:
        repository = open_repository(served.host, tmp_path)
        subject = put_subject(repository)
        tag = f"sha256-{subject.digest.hex}"
        served.put("web", {})
        index = {
            "schemaVersion": 2,
            "mediaType": oci_registry.INDEX,
            "manifests": [FOREIGN],
            "annotations": {"org.example": "of the index"},
            "org.example.unknown": [1],
        }
        served.put("web", index, tag)
        referrers.attach(repository, subject, [note("one")])
        after = served.manifest("web", tag)
        assert after.pop("manifests")[:-1] == index.pop("manifests")
        assert after == index
        assert texts(repository, subject) == {"one"}


def test_one_update_of_the_tag(tmp_path: Path) -> None:
    with OciRegistry(has_referrers=False).serve() as served:
        repository = open_repository(served.host, tmp_path)
        subject = put_subject(repository)
        referrers.attach(repository, subject, [note(str(number)) for number in range(5)])
        tag = f"/v2/web/manifests/sha256-{subject.digest.hex}"
        assert [each.method for each in served.seen if each.path == tag].count("PUT") == 1
        served.seen.clear()
        referrers.attach(repository, subject, [note(str(number)) for number in range(5)])
        assert [each.method for each in served.seen if each.path == tag] == ["GET"]
        [entry, *_] = served.manifest("web", f"sha256-{subject.digest.hex}")["manifests"]
        assert entry["artifactType"] == TYPE
        assert entry["annotations"] == {"org.example.n": "0"}


def test_no_tag_where_the_registry_has_a_list(tmp_path: Path) -> None:
    with OciRegistry().serve() as served:
        repository = open_repository(served.host, tmp_path)
        referrers.attach(repository, put_subject(repository), [note("one")])
        assert served.repository("web").tags == {}


def _write(host: str, cache: Path, subject: Descriptor, name: str, rounds: int) -> None:
    repository = open_repository(host, cache)
    for number in range(rounds):
        referrers.attach(repository, subject, [note(f"{name}{number}")])


@real
def test_two_writers_at_once(tmp_path: Path) -> None:
    """Processes that write to the tag at the same time lose nothing of each other."""
    rounds = 4
    with registry.serve(tmp_path / "storage") as host:
        repository = open_repository(host, tmp_path / "cache")
        subject = put_subject(repository)
        spawn = multiprocessing.get_context("spawn")
        writers = [
            spawn.Process(target=_write, args=(host, tmp_path / name, subject, name, rounds))
            for name in ("a", "b")
        ]
        for each in writers:
            each.start()
        for each in writers:
            each.join()
        assert [each.exitcode for each in writers] == [0, 0]
        expected = {f"{name}{number}" for name in ("a", "b") for number in range(rounds)}
        assert texts(repository, subject) == expected


def test_write_that_another_undoes(tmp_path: Path) -> None:
    """A writer that had read the tag before is the last to write it."""
    with OciRegistry(has_referrers=False).serve() as served:
        repository = open_repository(served.host, tmp_path)
        subject = put_subject(repository)
        tag = f"sha256-{subject.digest.hex}"
        served.put("web", {})
        stale: dict[str, Any] = {"mediaType": oci_registry.INDEX, "manifests": [FOREIGN]}

        def undo() -> None:
            while tag not in served.repository("web").tags:
                time.sleep(0.001)
            served.put("web", stale, tag)

        thread = threading.Thread(target=undo)
        thread.start()
        referrers.attach(repository, subject, [note("one")])
        thread.join()
        assert texts(repository, subject) == {"one"}
        assert FOREIGN in served.manifest("web", tag)["manifests"]


def test_writers_that_never_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with OciRegistry(has_referrers=False).serve() as served:
        repository = open_repository(served.host, tmp_path)
        subject = put_subject(repository)
        tag = f"sha256-{subject.digest.hex}"
        served.put("web", {"mediaType": oci_registry.INDEX, "manifests": []}, tag)
        served.lies[tag] = json.dumps({"manifests": []}).encode()
        with pytest.raises(NetworkError, match="other writers keep undoing"):
            referrers.attach(repository, subject, [note("one")])


@pytest.mark.parametrize(
    "index", [b"[]", b'{"manifests": 1}', b'{"manifests": [1]}', b'{"manifests": [{"digest": 1}]}']
)
def test_tag_that_is_something_else(index: bytes, tmp_path: Path) -> None:
    """It is not overwritten."""
    with OciRegistry(has_referrers=False).serve() as served:
        repository = open_repository(served.host, tmp_path)
        subject = put_subject(repository)
        tag = f"sha256-{subject.digest.hex}"
        served.put("web", {}, tag)
        served.lies[tag] = index
        before = served.repository("web").tags[tag]
        with pytest.raises(CorruptError):
            referrers.attach(repository, subject, [note("one")])
        assert served.repository("web").tags[tag] == before


def test_documents_that_are_not_read(tmp_path: Path) -> None:
    with OciRegistry().serve() as served:
        repository = open_repository(served.host, tmp_path)
        subject = put_subject(repository)
        referrers.attach(repository, subject, [note("x" * 101)])
        [found] = referrers.find(repository, subject.digest, TYPE)
        with pytest.raises(ForeignDocumentError, match="more than 100 bytes"):
            referrers.read(repository, found, 100)
        manifest = served.manifest("web", str(found.digest))
        manifest["layers"] *= 2
        digest = served.put("web", manifest)
        raw = served.repository("web").manifests[digest][1]
        two = Descriptor(MANIFEST_TYPE, Digest.of(raw), len(raw))
        with pytest.raises(ForeignDocumentError, match="has 2 layers"):
            referrers.read(repository, two, 1000)


def test_most_that_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(referrers, "MAX_REFERRERS", 3)
    with OciRegistry(page=2).serve() as served:
        repository = open_repository(served.host, tmp_path)
        subject = put_subject(repository)
        referrers.attach(repository, subject, [note(str(number)) for number in range(9)])
        served.seen.clear()
        assert len(referrers.find(repository, subject.digest, TYPE)) == 3
        assert len(served.seen) == 2
