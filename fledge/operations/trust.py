"""Decides whether an artifact is what somebody has signed, and what a policy accepts.

The order is: signatures, what they are about, and only then what the statement says. Nothing in it
is looked at before enough keys have signed it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fledge.errors import (
    ConfigError,
    CorruptError,
    MalformedError,
    unreadable_argument,
)
from fledge.host.files import PathLike
from fledge.operations.arguments import as_session
from fledge.operations.digests import read_digest
from fledge.operations.documents import is_manifest_of, read_beside
from fledge.project import manifest, provenance, signatures
from fledge.project.keys import PublicKey
from fledge.project.policy import Policy, matches
from fledge.project.provenance import Provenance
from fledge.session import Session
from fledge.sources.kinds import IMAGE_ROLES
from fledge.tree.digest import Digest

STATEMENTS = ("https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1")
"""The types of statements that are accepted. cosign writes the second one around a predicate."""

REFUSED_HINT = "Do not use it. Get it from where it is published, or ask whoever signs it."


class Trusted(msgspec.Struct, frozen=True):
    """A statement that enough keys have signed and that the policy accepts."""

    payload: bytes
    """The statement as it was signed."""
    statement: Mapping[str, Any]
    record: Provenance
    """The statement as it is understood. Its name is what the signers called the artifact."""
    keys: tuple[PublicKey, ...]
    """The keys of the policy that have signed it, in the order of the policy."""


def check(
    envelopes: Sequence[signatures.Envelope],
    policy: Policy,
    artifact: Digest,
    name: str = "the artifact",
) -> Trusted:
    """Return the first statement about an artifact that meets the policy.

    Signatures of one statement may be spread over several ``envelopes``. ``artifact`` is the digest
    of the artifact: the caller has checked its bytes, or will before they get a name. ``name`` is
    what messages call it. Raises `ConfigError` if the policy has expired, `CorruptError` if nothing
    meets it.
    """
    policy.check_date()
    if sum(len(each.signatures) for each in envelopes) > signatures.MAX_SIGNATURES:
        raise CorruptError(f"{name} has more than {signatures.MAX_SIGNATURES} signatures")
    signers: dict[bytes, set[int]] = {}
    for envelope in envelopes:
        signers.setdefault(envelope.payload, set()).update(_signers(envelope, policy.keys))
    accepted = {each: keys for each, keys in signers.items() if len(keys) >= policy.threshold}
    if not accepted:
        raise _unsigned(max(signers.values(), key=len, default=set()), policy, name)
    problems = []
    for payload, keys in accepted.items():
        try:
            statement, record = _read(payload, name)
            _check_statement(statement, record, policy, artifact, name)
        except CorruptError as error:
            problems.append(error)
            continue
        by = tuple(policy.keys[number] for number in sorted(keys))
        return Trusted(payload, statement, record, by)
    raise problems[0]


def verify_signatures(
    artifact: PathLike, policy: Policy, *, session: Session | None = None
) -> Trusted:
    """Check the signatures beside an artifact, and that they are about this very file.

    The provenance and the plugin manifest beside it, if there are any, must be those that were
    signed. Raises `ConfigError` if there are no signatures or the policy has expired,
    `CorruptError` if the policy is not met.
    """
    artifact, session = Path(artifact), as_session(session)
    path = signatures.path_beside(artifact)
    try:
        artifact.stat()
    except OSError as error:
        raise unreadable_argument(artifact, error) from error
    policy.check_date()
    envelope = read_beside(path, signatures.MAX_ENVELOPE_SIZE + 1)
    if envelope is None:
        raise ConfigError(
            f"{path} does not exist, so {artifact} is not signed",
            "fledge sign writes it beside the artifact; keep the two together.",
        )
    digest = read_digest(artifact, session)
    signed = signatures.parse(envelope, f"the signature of {artifact}")
    trusted = check([signed], policy, digest, str(artifact))
    beside = provenance.path_beside(artifact)
    text = read_beside(beside, provenance.MAX_STATEMENT_SIZE + 1)
    if text is not None and not _same_json(text, trusted.payload):
        raise CorruptError(
            f"{beside} is not the provenance that was signed",
            "Restore the file that was signed, or sign the artifact again.",
        )
    plugin = manifest.path_beside(artifact)
    text = read_beside(plugin, manifest.MAX_MANIFEST_SIZE + 1)
    if text is not None and not is_manifest_of(trusted.record, text):
        raise CorruptError(f"{plugin} is not the plugin manifest that was signed", REFUSED_HINT)
    return trusted


def _signers(envelope: signatures.Envelope, keys: Sequence[PublicKey]) -> set[int]:
    """Return the indexes of the keys that have signed. A key counts once."""
    message = signatures.encode(envelope.payload)
    found: set[int] = set()
    for each in envelope.signatures:
        left = (number for number in range(len(keys)) if number not in found)
        found.update(number for number in left if keys[number].verifies(message, each.signature))
    return found


def _unsigned(found: set[int], policy: Policy, name: str) -> CorruptError:
    names = ", ".join(policy.keys[number].name for number in sorted(found))
    by = f"only by {names}" if names else "by none of the keys"
    return CorruptError(
        f"{name} is signed {by}, and {policy.threshold} of {len(policy.keys)} must have signed it",
        REFUSED_HINT,
        [f"not by {key.name}, {key.digest}" for n, key in enumerate(policy.keys) if n not in found],
    )


def _read(payload: bytes, name: str) -> tuple[dict[str, Any], Provenance]:
    try:
        statement, record = provenance.parse(payload)
        if statement.get("_type") not in STATEMENTS:
            raise MalformedError("_type is not that of an in-toto statement")
        if statement.get("predicateType") != provenance.PREDICATE:
            raise MalformedError(f"predicateType is not {provenance.PREDICATE}")
    except MalformedError as error:
        raise CorruptError(
            f"what was signed for {name} is not the provenance of a fledge build: {error}",
            provenance.PROVENANCE_HINT,
        ) from error
    return statement, record


def _check_statement(
    statement: Mapping[str, Any], record: Provenance, policy: Policy, artifact: Digest, name: str
) -> None:
    """Raise `CorruptError` if the statement is about another artifact, or breaks the policy."""
    if record.digest != artifact:
        raise CorruptError(
            f"{name} is not the artifact that was signed",
            REFUSED_HINT,
            [f"signed: {record.digest}", f"here: {artifact}"],
        )
    builder = statement["predicate"]["runDetails"]["builder"].get("id")
    if policy.builder is not None and builder != policy.builder:
        raise CorruptError(
            f"{name} was built by {builder}, and the policy asks for {policy.builder}", REFUSED_HINT
        )
    if not policy.sources:
        return
    images = [each.uri for each in record.inputs if each.role in IMAGE_ROLES]
    wrong = [uri for uri in images if not any(matches(uri, each) for each in policy.sources)]
    if wrong or not images:
        made_from = f"from {wrong[0]}" if wrong else "without an image"
        raise CorruptError(
            f"{name} was built {made_from}, and the policy asks for {' or '.join(policy.sources)}",
            REFUSED_HINT,
        )


def _same_json(text: bytes, payload: bytes) -> bool:
    """Return whether two statements say the same. The second one has been parsed before."""
    if text == payload:
        return True
    try:
        document, _ = provenance.parse(text)
    except MalformedError:
        return False
    # As texts, because in Python 1 equals true.
    return json.dumps(document, sort_keys=True) == json.dumps(json.loads(payload), sort_keys=True)
