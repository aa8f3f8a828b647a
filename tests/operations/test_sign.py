"""Artifacts that are signed, and everything that can be wrong with that."""

from __future__ import annotations

import base64
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fledge
from fledge.errors import ConfigError, CorruptError
from fledge.host.settings import Settings
from fledge.operations import trust
from fledge.project import provenance, signatures
from fledge.project.keys import load_signer
from fledge.project.policy import Policy
from fledge.report import Reporter
from fledge.tree.digest import Digest
from tests.support import openssl, project

NAMES = ("alice", "bob", "carol")
ARTIFACT = "x.gz"
ENVELOPE = f"{ARTIFACT}.provenance.dsse.json"
PROVENANCE = f"{ARTIFACT}.provenance.json"

MANIFEST = """
[manifest]
name = "x"
version = "1"
workload = {type = "exec", entrypoint = ["/bin/sh"]}
resources = {cpu_cores = 1, memory_mb = 64}
"""

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a project, its artifact and three keys, signed by none."""
    folder = tmp_path_factory.mktemp("built")
    toml = project.make(folder, project.LOCAL_AGENT)
    toml.write_text(toml.read_text() + MANIFEST)
    environment = {"FLEDGE_CACHE_DIR": str(folder / "cache")}
    session = fledge.Session.default(environment=environment)
    fledge.build(toml, folder / ARTIFACT, platform="linux/amd64", session=session)
    for name in NAMES:
        fledge.keygen(folder / name, "ed25519" if name == "carol" else "ecdsa-p256")
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(built, tmp_path / "copy")


def sign(folder: Path, *names: str) -> None:
    for name in names:
        fledge.sign(folder / ARTIFACT, str(folder / f"{name}.key"))


def keys(folder: Path, *names: str) -> list[Path]:
    return [folder / f"{name}.pub" for name in names]


def verify(folder: Path, policy: Policy) -> list[str]:
    """The names of the keys that have signed."""
    trusted = fledge.verify_signatures(folder / ARTIFACT, policy)
    return [Path(key.name).stem for key in trusted.keys]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def resign(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Sign another statement, of which there is no file."""
    statement = read(folder / PROVENANCE)
    change(statement)
    payload = json.dumps(statement).encode()
    write_envelope(folder, payload, *keyed(folder, payload, name))
    (folder / PROVENANCE).unlink()


def keyed(folder: Path, payload: bytes, *names: str) -> list[signatures.Signature]:
    signers = [load_signer(str(folder / f"{name}.key"), None, str, Settings()) for name in names]
    return [signatures.Signature(each.sign(signatures.encode(payload))) for each in signers]


def write_envelope(folder: Path, payload: bytes, *found: signatures.Signature) -> None:
    envelope = signatures.Envelope(payload, found)
    (folder / ENVELOPE).write_bytes(signatures.serialize(envelope))


def test_what_is_signed_is_accepted(folder: Path) -> None:
    path = fledge.sign(folder / ARTIFACT, str(folder / "alice.key"))
    assert path == folder / ENVELOPE
    policy = Policy.of(keys(folder, "alice"))
    trusted = fledge.verify_signatures(folder / ARTIFACT, policy)
    assert trusted.payload == (folder / PROVENANCE).read_bytes()
    assert trusted.record == provenance.load(folder / ARTIFACT)
    first = path.read_bytes()
    sign(folder, "alice")
    assert path.read_bytes() == first
    verification = fledge.verify(folder / ARTIFACT, folder / "fledge.toml", policy=policy)
    assert verification.equal
    assert verification.signers == (str(folder / "alice.pub"),)


def test_more_signers(folder: Path) -> None:
    sign(folder, *NAMES)
    [alice, _, carol] = read(folder / ENVELOPE)["signatures"]
    assert verify(folder, Policy.of(keys(folder, *NAMES))) == list(NAMES)
    sign(folder, "bob")
    found = read(folder / ENVELOPE)["signatures"]
    assert found[:2] == [alice, carol]
    assert len(found) == 3
    assert verify(folder, Policy.of(keys(folder, "carol", "bob"))) == ["carol", "bob"]


@pytest.mark.parametrize(
    ("signers", "threshold", "accepted"),
    [
        (("alice", "carol"), 2, True),
        (("alice", "carol"), 1, True),
        (("alice", "carol"), 3, False),
        (("alice", "carol"), None, False),
        (("bob",), 2, False),
        (NAMES, None, True),
    ],
)
def test_two_of_three_keys(
    folder: Path, signers: tuple[str, ...], threshold: int | None, accepted: bool
) -> None:
    sign(folder, *signers)
    policy = Policy.of(keys(folder, *NAMES), threshold=threshold)
    if accepted:
        assert verify(folder, policy) == list(signers)
        return
    with pytest.raises(CorruptError) as raised:
        verify(folder, policy)
    assert f"and {threshold or 3} of 3 must have signed it" in raised.value.message
    missing = [name for name in NAMES if name not in signers]
    assert [line.split(",")[0] for line in raised.value.details] == [
        f"not by {folder / name}.pub" for name in missing
    ]


def test_one_key_counts_once(folder: Path) -> None:
    """ECDSA has many signatures of one message, and a signature can be repeated."""
    payload = (folder / PROVENANCE).read_bytes()
    [one] = keyed(folder, payload, "carol")
    write_envelope(folder, payload, one, one, signatures.Signature(one.signature, "other"))
    policy = Policy.of(keys(folder, *NAMES), threshold=2)
    with pytest.raises(CorruptError, match=r"only by .*/carol\.pub, and 2 of 3 must"):
        verify(folder, policy)
    assert verify(folder, Policy.of(keys(folder, "carol"))) == ["carol"]


def test_the_keyid_says_nothing(folder: Path) -> None:
    payload = (folder / PROVENANCE).read_bytes()
    policy = Policy.of(keys(folder, "alice"))
    digest = str(policy.keys[0].digest)
    [by_carol, by_alice] = keyed(folder, payload, "carol", "alice")
    write_envelope(folder, payload, signatures.Signature(by_carol.signature, digest))
    with pytest.raises(CorruptError, match="by none of the keys"):
        verify(folder, policy)
    write_envelope(folder, payload, signatures.Signature(by_alice.signature, "carol"))
    assert verify(folder, policy) == ["alice"]


def append(name: str, data: bytes = b"x") -> Change:
    return lambda folder: (folder / name).open("ab").write(data)


def edit(name: str, change: Callable[[Any], object]) -> Change:
    """Change a JSON file."""

    def changed(folder: Path) -> None:
        document = read(folder / name)
        change(document)
        (folder / name).write_text(json.dumps(document))

    return changed


def other_payload(document: Any) -> None:
    statement = json.loads(base64.b64decode(document["payload"]))
    statement["predicate"]["buildDefinition"]["externalParameters"]["platform"] = "linux/arm64"
    document["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()


def flip(document: Any) -> None:
    signature = bytearray(base64.b64decode(document["signatures"][0]["sig"]))
    signature[-1] ^= 1
    document["signatures"][0]["sig"] = base64.b64encode(signature).decode()


REFUSED: dict[str, tuple[Change, str]] = {
    "artifact": (append(ARTIFACT), "is not the artifact that was signed"),
    "artifact cut": (lambda f: os.truncate(f / ARTIFACT, 100), "is not the artifact that was"),
    "statement": (
        edit(PROVENANCE, lambda s: s["subject"][0]["digest"].update(sha256="0" * 64)),
        "x.gz.provenance.json is not the provenance that was signed",
    ),
    "statement, field": (edit(PROVENANCE, lambda s: s.update(x=1)), "is not the provenance that"),
    "statement, no JSON": (append(PROVENANCE, b"}"), "is not the provenance that was signed"),
    "manifest": (
        append("x.gz.manifest.json"),
        "x.gz.manifest.json is not the plugin manifest that was",
    ),
    "payload": (edit(ENVELOPE, other_payload), "is signed by none of the keys"),
    "signature": (edit(ENVELOPE, flip), "is signed by none of the keys"),
    "signature, empty": (
        edit(ENVELOPE, lambda e: e["signatures"][0].update(sig="")),
        "is signed by none of the keys",
    ),
    "no signatures": (edit(ENVELOPE, lambda e: e.update(signatures=[])), "is no DSSE envelope"),
    "payload type": (
        edit(ENVELOPE, lambda e: e.update(payloadType="text/plain")),
        "its payloadType is not application/vnd.in-toto+json",
    ),
    "no JSON": (append(ENVELOPE), "is no DSSE envelope with a statement"),
    "wrong key": (lambda f: shutil.copy(f / "bob.pub", f / "alice.pub"), "by none of the keys"),
    "key of another kind": (
        lambda f: shutil.copy(f / "carol.pub", f / "alice.pub"),
        "by none of the keys",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_was_tampered_with_is_refused(folder: Path, name: str) -> None:
    change, problem = REFUSED[name]
    sign(folder, "alice")
    change(folder)
    policy = Policy.of(keys(folder, "alice"))
    with pytest.raises(CorruptError) as raised:
        fledge.verify_signatures(folder / ARTIFACT, policy)
    assert problem in str(raised.value)
    with pytest.raises(CorruptError) as again:
        fledge.verify(folder / ARTIFACT, folder / "fledge.toml", policy=policy)
    assert str(again.value) == str(raised.value)


def test_what_says_the_same_is_the_same(folder: Path) -> None:
    """Only the envelope is needed, and the provenance may be written in another way."""
    sign(folder, "alice")
    policy = Policy.of(keys(folder, "alice"))
    (folder / PROVENANCE).write_text(json.dumps(read(folder / PROVENANCE)))
    assert verify(folder, policy) == ["alice"]
    (folder / PROVENANCE).unlink()
    assert verify(folder, policy) == ["alice"]
    (folder / "x.gz.manifest.json").unlink()
    assert verify(folder, policy) == ["alice"]
    (folder / ENVELOPE).unlink()
    with pytest.raises(ConfigError, match=r"dsse\.json does not exist, so .* is not signed"):
        verify(folder, policy)


def test_true_is_not_one(folder: Path) -> None:
    resign(folder, "alice", lambda s: s.update(x=1))
    policy = Policy.of(keys(folder, "alice"))
    payload = base64.b64decode(read(folder / ENVELOPE)["payload"])
    (folder / PROVENANCE).write_bytes(payload.replace(b'"x": 1', b'"x": true'))
    with pytest.raises(CorruptError, match="is not the provenance that was signed"):
        verify(folder, policy)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: s.update(predicateType="https://slsa.dev/provenance/v0.2"), "predicateType is"),
        (lambda s: s.pop("predicateType"), "predicateType is not"),
        (lambda s: s.update(_type="https://in-toto.io/Link/v1"), "_type is not that of"),
        (lambda s: s.update(subject=[]), "subject"),
        (lambda s: s["subject"].reverse(), "is not the artifact that was signed"),
        (lambda s: s["predicate"].clear(), "is not the provenance of a fledge build"),
    ],
)
def test_other_statements_by_the_same_key(
    folder: Path, change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    resign(folder, "alice", change)
    with pytest.raises(CorruptError, match=problem):
        verify(folder, Policy.of(keys(folder, "alice")))


def test_a_statement_that_is_no_json(folder: Path) -> None:
    for payload in (b"", b"{", b"[]", b"[" * 100_000, b'{"a":' * 1000, b"[1" + b",1" * 600_000):
        write_envelope(folder, payload, *keyed(folder, payload, "alice"))
        with pytest.raises(CorruptError, match="is not the provenance of a fledge build"):
            verify(folder, Policy.of(keys(folder, "alice")))


def test_the_policy_about_builder_and_source(folder: Path) -> None:
    image = {
        "name": "image",
        "uri": "docker://docker.io/library/nginx:alpine",
        "digest": {"sha256": "0" * 64},
    }

    def dependencies(statement: dict[str, Any]) -> Any:
        return statement["predicate"]["buildDefinition"]["resolvedDependencies"]

    own = keys(folder, "alice")
    sign(folder, "alice")
    assert verify(folder, Policy.of(own, builder="https://github.com/volantvm/fledge"))
    with pytest.raises(CorruptError, match=r"built by https://github\.com/volantvm/fledge, and"):
        verify(folder, Policy.of(own, builder="https://github.com/volantvm/fledge/"))
    with pytest.raises(CorruptError, match="was built without an image, and the policy asks for"):
        verify(folder, Policy.of(own, sources=["*"]))
    resign(folder, "alice", lambda s: dependencies(s).append(image))
    assert verify(folder, Policy.of(own, sources=["quay.io/*", "docker.io/library/*"]))
    with pytest.raises(CorruptError, match=r"built from docker://docker\.io.* asks for quay"):
        verify(folder, Policy.of(own, sources=["quay.io/*", "ghcr.io/*"]))


def test_a_policy_that_has_expired(folder: Path) -> None:
    sign(folder, *NAMES)
    file = folder / "policy.toml"
    text = 'keys = ["alice.pub", "bob.pub", "carol.pub"]\nthreshold = 2\nexpires = {}\n'
    file.write_text(text.format("2999-01-01T00:00:00Z"))
    assert verify(folder, Policy.load(file)) == list(NAMES)
    file.write_text(text.format("2020-01-01T00:00:00Z"))
    with pytest.raises(ConfigError, match=r"policy\.toml expired at 2020"):
        verify(folder, Policy.load(file))
    with pytest.raises(ConfigError, match=r"policy\.toml expired at 2020"):
        trust.check([], Policy.load(file), Digest("0" * 64))


def test_several_envelopes(folder: Path) -> None:
    """As referrers in a registry: each signer may have pushed one."""
    payload = (folder / PROVENANCE).read_bytes()
    other = payload.replace(b"linux/amd64", b"linux/arm64")
    digest = provenance.load(folder / ARTIFACT).digest

    def envelope(statement: bytes, *names: str) -> bytes:
        found = tuple(keyed(folder, statement, *names))
        return signatures.serialize(signatures.Envelope(statement, found))

    def check(*envelopes: bytes, threshold: int = 2) -> trust.Trusted:
        policy = Policy.of(keys(folder, *NAMES), threshold=threshold)
        parsed = [signatures.parse(each, "the signature of it") for each in envelopes]
        return trust.check(parsed, policy, digest, "it")

    trusted = check(envelope(payload, "carol"), envelope(payload, "alice"))
    assert trusted.payload == payload
    assert [Path(key.name).stem for key in trusted.keys] == ["alice", "carol"]
    # Signatures of two statements are not added up.
    with pytest.raises(CorruptError, match="it is signed only by"):
        check(envelope(payload, "carol"), envelope(other, "alice"))
    # A signature says nothing about another payload.
    split = [envelope(payload, "carol"), envelope(other, "alice")]
    both = [json.loads(each) for each in split]
    both[0]["signatures"] += both[1]["signatures"]
    with pytest.raises(CorruptError, match=r"only by .*carol\.pub, and 2 of 3"):
        check(json.dumps(both[0]).encode())
    # One that is about another artifact does not hide the right one.
    wrong = payload.replace(digest.hex.encode(), b"0" * 64)
    assert check(envelope(wrong, *NAMES), envelope(payload, *NAMES)).payload == payload
    with pytest.raises(CorruptError, match="it is not the artifact that was signed"):
        check(envelope(wrong, *NAMES))
    with pytest.raises(CorruptError, match="it is signed by none of the keys"):
        check()
    with pytest.raises(CorruptError, match="the signature of it is no DSSE envelope"):
        check(envelope(payload, *NAMES), b"{}")
    with pytest.raises(CorruptError, match="it has more than 64 signatures"):
        check(*[envelope(payload, "carol")] * 65)


def test_only_the_artifact_of_the_provenance_is_signed(folder: Path) -> None:
    with (folder / ARTIFACT).open("ab") as file:
        file.write(b"x")
    with pytest.raises(CorruptError, match="is not the artifact in its provenance, so it is not"):
        sign(folder, "alice")
    assert not (folder / ENVELOPE).exists()


def test_a_bad_signature_is_not_written(folder: Path) -> None:
    sign(folder, "bob")
    before = (folder / ENVELOPE).read_bytes()
    with pytest.raises(CorruptError, match=r"what printf printed is no signature by .*alice\.pub"):
        fledge.sign(folder / ARTIFACT, "exec:printf no", public_key=folder / "alice.pub")
    assert (folder / ENVELOPE).read_bytes() == before


def test_signatures_of_an_older_statement_are_dropped(folder: Path) -> None:
    sign(folder, "alice")
    (folder / PROVENANCE).write_text(json.dumps(read(folder / PROVENANCE)))
    notes: list[str] = []

    class Notes(fledge.Reporter):
        def note(self, message: str) -> None:
            notes.append(message)

    session = fledge.Session.default(reporter=Notes())
    fledge.sign(folder / ARTIFACT, str(folder / "bob.key"), session=session)
    assert "its signatures are dropped" in notes[0]
    assert verify(folder, Policy.of(keys(folder, "bob"))) == ["bob"]
    assert len(read(folder / ENVELOPE)["signatures"]) == 1


def test_signing_needs_a_sound_envelope_and_room(folder: Path) -> None:
    (folder / ENVELOPE).write_text("{}")
    with pytest.raises(CorruptError, match=r"x\.gz\.provenance\.dsse\.json is no DSSE envelope"):
        sign(folder, "alice")
    payload = (folder / PROVENANCE).read_bytes()
    write_envelope(folder, payload, *[signatures.Signature(b"x")] * 64)
    with pytest.raises(CorruptError, match="has 64 signatures, and cannot have more"):
        sign(folder, "alice")
    (folder / ENVELOPE).unlink()
    (folder / PROVENANCE).unlink()
    with pytest.raises(ConfigError, match=r"x\.gz\.provenance\.json does not exist"):
        sign(folder, "alice")
    (folder / ARTIFACT).unlink()
    with pytest.raises(ConfigError, match=r"x\.gz could not be read: no such file"):
        sign(folder, "alice")


@pytest.mark.parametrize("kind", ["ecdsa-p256", "ed25519"])
def test_new_keys(tmp_path: Path, kind: Any) -> None:
    made = fledge.keygen(tmp_path / "team.v2", kind, passphrase="secret")  # noqa: S106
    assert made.private == tmp_path / "team.v2.key"
    assert made.public == tmp_path / "team.v2.pub"
    assert made.private.stat().st_mode & 0o777 == 0o600
    assert made.private.read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert made.public.read_text().startswith("-----BEGIN PUBLIC KEY-----")
    before = made.private.read_bytes(), made.public.read_bytes()
    with pytest.raises(ConfigError, match="exists, and is not overwritten"):
        fledge.keygen(tmp_path / "team.v2")
    made.public.rename(tmp_path / "kept.pub")
    with pytest.raises(ConfigError, match=r"team\.v2\.key exists, and is not overwritten"):
        fledge.keygen(tmp_path / "team.v2")
    assert not made.public.exists()
    (tmp_path / "kept.pub").rename(made.public)
    assert (made.private.read_bytes(), made.public.read_bytes()) == before
    made.private.unlink()
    with pytest.raises(ConfigError, match=r"team\.v2\.pub exists, and is not overwritten"):
        fledge.keygen(tmp_path / "team.v2")
    assert not made.private.exists()


@pytest.mark.real
@pytest.mark.parametrize("kind", openssl.GENERATE)
def test_openssl_agrees_with_the_envelope(folder: Path, kind: str) -> None:
    """openssl checks what fledge signs, and fledge accepts what openssl signs."""
    private, public = openssl.key(folder, kind)
    fledge.sign(folder / ARTIFACT, str(private))
    document = read(folder / ENVELOPE)
    payload = base64.b64decode(document["payload"])
    kind_of_payload = document["payloadType"].encode()
    message = b"DSSEv1 %d %b %d %b" % (len(kind_of_payload), kind_of_payload, len(payload), payload)
    signature = base64.b64decode(document["signatures"][0]["sig"])
    assert openssl.verifies(public, kind, message, signature)
    theirs = openssl.sign(private, kind, message)
    document["signatures"] = [{"sig": base64.urlsafe_b64encode(theirs).decode()}]
    (folder / ENVELOPE).write_text(json.dumps(document))
    assert verify(folder, Policy.of([public])) == ["other"]


@pytest.mark.real
def test_two_who_sign_at_once(folder: Path) -> None:
    names = ["alice", "bob", "carol"]
    threads = [threading.Thread(target=sign, args=(folder, name)) for name in names * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verify(folder, Policy.of(keys(folder, *names))) == names


def test_a_key_that_others_can_read(folder: Path) -> None:
    notes: list[str] = []
    reporter = Reporter()
    reporter.note = notes.append  # type: ignore[method-assign, assignment]
    session = fledge.Session.default(reporter=reporter)
    key = folder / "alice.key"
    key.chmod(0o600)
    fledge.sign(folder / ARTIFACT, str(key), session=session)
    assert notes == []
    key.chmod(0o644)
    fledge.sign(folder / ARTIFACT, str(key), session=session)
    assert notes == [f"others can read {key}: run chmod 600 {key}"]


def test_openssl_signs_as_a_command(folder: Path) -> None:
    private, public = openssl.key(folder, "ecdsa-p256")
    command = f"exec:openssl dgst -sha256 -sign '{private}'"
    fledge.sign(folder / ARTIFACT, command, public_key=public)
    assert verify(folder, Policy.of([public])) == ["other"]
