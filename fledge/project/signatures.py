"""Reads and writes ``NAME.provenance.dsse.json``, the signatures of an artifact's provenance.

The file is a DSSE envelope (github.com/secure-systems-lab/dsse, protocol.md and envelope.md) whose
payload is the in-toto statement, byte for byte. cosign's ``attest-blob`` writes the same envelope,
alone or in a Sigstore bundle (sigstore/protobuf-specs, protos/sigstore_bundle.proto). Nothing in an
envelope says which key or algorithm checks it: the reader's own keys do.
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Annotated

import msgspec

from fledge.errors import CorruptError, MalformedError
from fledge.project.provenance import MAX_STATEMENT_SIZE
from fledge.sources import ownfiles

PAYLOAD_TYPE = "application/vnd.in-toto+json"
"""The only type of payload that is read (in-toto/attestation, spec/v1/envelope.md)."""

BUNDLE = "application/vnd.dev.sigstore.bundle"
"""How the media type of a Sigstore bundle begins, whatever its version."""

MAX_SIGNATURES = 64
"""Maximum signatures in an envelope. Each is checked with every key."""

MAX_SIGNATURE_SIZE = 1 << 10
"""Maximum characters of a signature in base64. An ECDSA signature with P-256 has at most 96."""

MAX_ENVELOPE_SIZE = MAX_STATEMENT_SIZE // 3 * 4 + (1 << 20)
"""Maximum bytes of an envelope or a bundle: a statement in base64 and 1 MiB."""


class Signature(msgspec.Struct, frozen=True):
    """One signature, by an unknown key."""

    signature: bytes
    keyid: str = ""
    """A hint that is not authenticated, and that fledge ignores. It writes an empty one, as cosign
    does, whose reader takes any other text for the fingerprint of an OpenSSH key."""


class Envelope(msgspec.Struct, frozen=True):
    """A statement and its signatures, of which nothing is verified."""

    payload: bytes
    """The statement as JSON."""
    signatures: tuple[Signature, ...]


class _JsonSignature(msgspec.Struct):
    sig: Annotated[str, msgspec.Meta(max_length=MAX_SIGNATURE_SIZE)]
    keyid: Annotated[str, msgspec.Meta(max_length=MAX_SIGNATURE_SIZE)] = ""


class _JsonEnvelope(msgspec.Struct, rename="camel"):
    payload: str
    payload_type: str
    signatures: Annotated[
        list[_JsonSignature], msgspec.Meta(min_length=1, max_length=MAX_SIGNATURES)
    ]


class _JsonBundle(msgspec.Struct, rename="camel"):
    """A Sigstore bundle, or something else: then the fields are empty."""

    media_type: str = ""
    dsse_envelope: _JsonEnvelope | None = None


def path_beside(artifact: Path) -> Path:
    """Return the path of the envelope with an artifact's signatures."""
    return artifact.parent / f"{artifact.name}{ownfiles.SIGNATURES_SUFFIX}"


def encode(payload: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """Return the message that is signed: the pre-authentication encoding (DSSE, protocol.md)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def parse(text: bytes, name: str) -> Envelope:
    """Read an envelope, or a Sigstore bundle with one. ``name`` is what messages call it.

    Raises `CorruptError`.
    """
    try:
        if len(text) > MAX_ENVELOPE_SIZE:
            raise MalformedError(f"it is larger than {MAX_ENVELOPE_SIZE} bytes")
        # Fields without a meaning here are skipped, not kept in memory.
        bundle = msgspec.json.decode(text, type=_JsonBundle)
        envelope = bundle.dsse_envelope
        if not envelope or not bundle.media_type.startswith(BUNDLE):
            envelope = msgspec.json.decode(text, type=_JsonEnvelope)
        if envelope.payload_type != PAYLOAD_TYPE:
            raise MalformedError(f"its payloadType is not {PAYLOAD_TYPE}")
        return Envelope(
            _from_base64(envelope.payload, "payload"),
            tuple(Signature(_from_base64(s.sig, "sig"), s.keyid) for s in envelope.signatures),
        )
    except (MalformedError, msgspec.DecodeError, RecursionError) as error:
        raise CorruptError(
            f"{name} is no DSSE envelope with a statement: {error}",
            "Get the original file, or sign the artifact again.",
        ) from error


def serialize(envelope: Envelope) -> bytes:
    """Return the file with an envelope, which depends on nothing else."""
    document = {
        "payload": base64.b64encode(envelope.payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [
            {"keyid": each.keyid, "sig": base64.b64encode(each.signature).decode()}
            for each in envelope.signatures
        ],
    }
    return (json.dumps(document) + "\n").encode()


def _from_base64(text: str, field: str) -> bytes:
    """Decode the standard alphabet or the one for URLs (RFC 4648), padded."""
    if "-" in text or "_" in text:
        if "+" in text or "/" in text:
            raise MalformedError(f"{field} mixes two alphabets of base64")
        text = text.replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedError(f"{field} is not base64") from error
