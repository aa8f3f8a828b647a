"""DSSE envelopes, by the vectors of the specification and by hostile ones."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from fledge.errors import CorruptError
from fledge.project import signatures
from fledge.project.keys import PrivateKey, PublicKey
from fledge.project.signatures import Envelope, Signature

STATEMENT = b'{"_type":"https://in-toto.io/Statement/v1"}'

# RFC 8032, section 7.1: the seeds of TEST 1 and TEST 2, in base64.
SEEDS = {
    "A": "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=",
    "B": "TM0Imyj/ltqdtsNG7BFOD1uKMZ81q6Yk2oz27U+4pvs=",
}
# dsse, testvectors/vectors.json: what these keys sign of STATEMENT, and A of another payload.
SIGNATURES = {
    "A": "2WAfaHm5jluo0w+0rk8uVkluELJYWjSmU9x7EUzx+AyteDGJ4/nqyJXfmAUVFIAoQafWm7AxBZNw5M9ixNHiCA==",
    "B": "c1+67/aT0yqEpwx8PsVY3MLHsj9D0CZ014/Fv/QlG59P+9CobUZ7xECJ/V3USG0Ob9CiE5LjReEZUzNF2l7eBw==",
}
URL_SAFE_PAYLOAD = "-_-_Pj8="
URL_SAFE = (
    "P-_KHICeR7tI6S_YyejJTRtrXhcQyQ2LYPaL8h90KjC9qN8HU_svOQ6TuDOT1HIrsGW886DbWNWcCmX5twLrAw=="
)


def private(name: str) -> PrivateKey:
    seed = base64.b64decode(SEEDS[name])
    return PrivateKey(ed25519.Ed25519PrivateKey.from_private_bytes(seed), name)


def document(**fields: Any) -> dict[str, Any]:
    made = {
        "payload": base64.b64encode(STATEMENT).decode(),
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"keyid": "", "sig": SIGNATURES["A"]}],
    }
    return {**made, **fields}


def parse(document: object) -> Envelope:
    return signatures.parse(json.dumps(document).encode(), "x")


def accepted(envelope: Envelope, key: PublicKey) -> bool:
    message = signatures.encode(envelope.payload)
    return any(key.verifies(message, each.signature) for each in envelope.signatures)


def test_the_message_of_the_specification() -> None:
    """protocol.md, "Test Vectors", and a type that is not ASCII: lengths are those of bytes."""
    message = signatures.encode(b"hello world", "http://example.com/HelloWorld")
    assert message == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert signatures.encode(b"", "a\u00e4") == b"DSSEv1 3 a\xc3\xa4 0 "


def test_the_signature_of_the_specification() -> None:
    """protocol.md: P-256 by RFC 6979; there r and s stand one after the other, not in DER."""
    d = 97358161215184420915383655311931858321456579547487070936769975997791359926199
    published = base64.b64decode(
        "A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA=="
    )
    r, s = (int.from_bytes(half, "big") for half in (published[:32], published[32:]))
    key = PrivateKey(ec.derive_private_key(d, ec.SECP256R1()), "theirs")
    message = signatures.encode(b"hello world", "http://example.com/HelloWorld")
    assert key.public.verifies(message, encode_dss_signature(r, s))
    assert key.sign(message) == encode_dss_signature(r, s)
    assert not key.public.verifies(message, published)  # nobody else writes them so


@pytest.mark.parametrize("name", SEEDS)
def test_the_vectors_with_ed25519(name: str) -> None:
    key = private(name)
    envelope = parse(document(signatures=[{"sig": SIGNATURES[name]}]))
    assert envelope.payload == STATEMENT
    assert key.sign(signatures.encode(STATEMENT)) == envelope.signatures[0].signature
    for other in SEEDS:
        assert accepted(envelope, private(other).public) == (other == name)


def test_both_alphabets_of_base64() -> None:
    envelope = parse(document(payload=URL_SAFE_PAYLOAD, signatures=[{"sig": URL_SAFE}]))
    assert accepted(envelope, private("A").public)
    standard = document(
        payload=URL_SAFE_PAYLOAD.replace("-", "+").replace("_", "/"),
        signatures=[{"sig": URL_SAFE.replace("-", "+").replace("_", "/")}],
    )
    assert parse(standard) == envelope


def test_what_is_written_is_read() -> None:
    envelope = Envelope(STATEMENT, (Signature(b"one"), Signature(b"two", "hint")))
    text = signatures.serialize(envelope)
    assert signatures.parse(text, "x") == envelope
    assert json.loads(text)["signatures"][0] == {"keyid": "", "sig": "b25l"}
    assert text == signatures.serialize(envelope)
    assert signatures.path_beside(Path("a/x.img")) == Path("a/x.img.provenance.dsse.json")


@pytest.mark.parametrize("version", [".v0.3+json", "+json;version=0.1"])
def test_a_sigstore_bundle(version: str) -> None:
    bundle = {
        "mediaType": f"application/vnd.dev.sigstore.bundle{version}",
        "verificationMaterial": {"publicKey": {"hint": "x"}, "tlogEntries": [{"logIndex": "1"}]},
        "dsseEnvelope": document(),
    }
    assert parse(bundle) == parse(document())
    with pytest.raises(CorruptError, match="missing required field"):
        parse({**bundle, "mediaType": "application/json"})


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"payloadType": "application/vnd.in-toto"}, "its payloadType is not"),
        ({"payloadType": "APPLICATION/VND.IN-TOTO+JSON"}, "its payloadType is not"),
        ({"payloadType": ""}, "its payloadType is not"),
        ({"payload": "-_+/"}, "payload mixes two alphabets"),
        ({"payload": "aGk"}, "payload is not base64"),
        ({"payload": "aGk=\n"}, "payload is not base64"),
        ({"payload": "ä"}, "payload is not base64"),
        ({"payload": 1}, "Expected `str`, got `int`"),
        ({"payload": None}, "Expected `str`, got `null`"),
        ({"signatures": []}, "length >= 1"),
        ({"signatures": [{"sig": "aGk="}] * 65}, "length <= 64"),
        ({"signatures": [{"keyid": "x"}]}, "missing required field `sig`"),
        ({"signatures": [{"sig": "a" * 1025}]}, "length <= 1024"),
        ({"signatures": [{"sig": "aGk=", "keyid": "a" * 1025}]}, "length <= 1024"),
        ({"signatures": "x"}, "Expected `array`"),
    ],
)
def test_wrong_envelopes(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(CorruptError, match=re.escape(problem)) as raised:
        parse(document(**fields))
    assert raised.value.message.startswith("x is no DSSE envelope with a statement: ")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b"[" * 1_000_000,
        b'{"a":' * 1_000_000,
        b'{"a":' + b"[" * 1_000_000,
        b'{"payload":"' + b"\\ud800" * 5,
    ],
    ids=range(10),
)
def test_no_envelopes(text: bytes) -> None:
    with pytest.raises(CorruptError):
        signatures.parse(text, "x")


def test_a_large_envelope() -> None:
    with pytest.raises(CorruptError, match="larger than"):
        signatures.parse(b" " * (signatures.MAX_ENVELOPE_SIZE + 1), "x")


def test_fields_without_a_meaning_are_skipped() -> None:
    more = document(extra=[{}] * 1000, algorithm="none")
    more["signatures"][0].update(algorithm="none", cert="x", extension={"kind": []})
    assert parse(more) == parse(document())
