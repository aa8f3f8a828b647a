"""Pulls that need signatures, from a registry in which somebody has changed what they cover."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fledge as library
from fledge.errors import CorruptError
from fledge.host.settings import Settings
from fledge.oci.artifact import EMPTY_CONFIG, PLUGIN_TYPE, PREFIX, TITLE
from fledge.operations.pull import pull
from fledge.operations.push import push
from fledge.report import Reporter
from fledge.session import Session
from fledge.store.cache import Cache
from tests.support import oci_registry
from tests.support.oci_registry import OciRegistry

pytestmark = pytest.mark.slow

Manifest = dict[str, Any]


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(Settings(os.environ), Cache(tmp_path / "cache"), Reporter(), backoff=0)


@pytest.fixture
def policy(tmp_path: Path) -> library.Policy:
    made = library.keygen(tmp_path / "ci")
    return library.Policy.of([made.public])


@pytest.fixture
def signed(web: Path, served: OciRegistry, policy: library.Policy, session: Session) -> OciRegistry:
    """A registry with a signed artifact under the tag 1."""
    library.sign(web, str(Path(web.parents[1], "ci.key")), session=session)
    push(web, f"{served.host}/web:1", session=session)
    return served


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def forge(served: OciRegistry, change: Callable[[Manifest], None]) -> str:
    """Put a changed manifest under the tag ``evil``, and attach to it what the true one has."""
    repository = served.repository("web")
    manifest = served.manifest("web", "1")
    change(manifest)
    served.put("web", manifest, "evil")
    subject = repository.tags["evil"]
    size = len(repository.manifests[subject][1])
    for _, raw in list(repository.manifests.values()):
        document = json.loads(raw)
        if document.get("subject", {}).get("digest") == repository.tags["1"]:
            new = {"mediaType": oci_registry.MANIFEST, "digest": subject, "size": size}
            served.put("web", {**document, "subject": new})
    return f"{served.host}/web:evil"


def test_what_is_signed_is_pulled_and_verified(
    signed: OciRegistry, policy: library.Policy, session: Session, out: Path
) -> None:
    [pulled] = pull(f"{signed.host}/web:1", out, policy=policy, session=session)
    assert pulled.signatures
    assert pulled.provenance
    assert library.verify_signatures(pulled.path, policy).keys == policy.keys
    assert str(out) in (out / "web.img.manifest.json").read_text(), "it says where it is now"


def plugin(served: OciRegistry, manifest: Manifest) -> Manifest:
    text = served.repository("web").blobs[manifest["config"]["digest"]]
    found: Manifest = json.loads(text)
    return found


@pytest.mark.parametrize("title", ["web.img", "other.img"])
def test_another_plugin_manifest(
    title: str, signed: OciRegistry, policy: library.Policy, session: Session, out: Path
) -> None:
    def change(manifest: Manifest) -> None:
        evil = plugin(signed, manifest)
        evil["workload"]["entrypoint"] = ["/bin/evil"]
        manifest["config"] = signed.put_blob("web", json.dumps(evil).encode(), PLUGIN_TYPE)
        manifest["annotations"][TITLE] = title

    with pytest.raises(CorruptError, match="is not the one that was signed"):
        pull(forge(signed, change), out, policy=policy, session=session)
    assert os.listdir(out) == []


def test_no_plugin_manifest(
    signed: OciRegistry, policy: library.Policy, session: Session, out: Path
) -> None:
    def change(manifest: Manifest) -> None:
        manifest["config"] = signed.put_blob("web", b"{}", EMPTY_CONFIG.media_type)

    with pytest.raises(CorruptError, match="is not the one that was signed"):
        pull(forge(signed, change), out, policy=policy, session=session)
    assert os.listdir(out) == []


def test_a_plugin_manifest_that_was_never_signed(
    web: Path, served: OciRegistry, policy: library.Policy, session: Session, out: Path
) -> None:
    manifest = web.with_name("web.img.manifest.json")
    text = manifest.read_bytes()
    record = web.with_name("web.img.provenance.json")
    statement = json.loads(record.read_bytes())
    statement["subject"] = statement["subject"][:1]
    del statement["predicate"]["buildDefinition"]["externalParameters"]["url"]
    record.write_text(json.dumps(statement))
    manifest.unlink()
    library.sign(web, str(Path(web.parents[1], "ci.key")), session=session)
    push(web, f"{served.host}/web:1", session=session)
    assert pull(f"{served.host}/web:1", out, policy=policy, session=session)

    def change(found: Manifest) -> None:
        found["config"] = served.put_blob("web", text, PLUGIN_TYPE)

    with pytest.raises(CorruptError, match="is not the one that was signed"):
        pull(forge(served, change), out, policy=policy, session=session)
    manifest.write_bytes(text)
    with pytest.raises(CorruptError, match="is not the plugin manifest that was signed"):
        library.verify_signatures(web, policy)


def test_another_platform(
    signed: OciRegistry, policy: library.Policy, session: Session, out: Path
) -> None:
    def change(manifest: Manifest) -> None:
        manifest["annotations"][f"{PREFIX}platform"] = "linux/arm64"

    with pytest.raises(CorruptError, match="the platform is not the one that was signed"):
        reference = forge(signed, change)
        pull(reference, out, platform="linux/arm64", policy=policy, session=session)


def test_envelopes_of_other_kinds_do_no_harm(
    signed: OciRegistry, policy: library.Policy, session: Session, out: Path
) -> None:
    envelope = {
        "payload": "e30=",
        "payloadType": "application/vnd.cyclonedx+json",
        "signatures": [{"sig": "AAAA"}],
    }
    subject = signed.repository("web").tags["1"]
    raw = signed.repository("web").manifests[subject][1]
    kind = "application/vnd.dsse.envelope.v1+json"
    signed.put(
        "web",
        {
            "mediaType": oci_registry.MANIFEST,
            "artifactType": kind,
            "config": signed.put_blob("web", b"{}", EMPTY_CONFIG.media_type),
            "layers": [signed.put_blob("web", json.dumps(envelope).encode(), kind)],
            "subject": {"mediaType": oci_registry.MANIFEST, "digest": subject, "size": len(raw)},
        },
    )
    assert pull(f"{signed.host}/web:1", out, policy=policy, session=session)
