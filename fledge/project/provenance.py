"""Reads and writes ``NAME.provenance.json``, which records how an artifact was built.

The file is an in-toto Statement (github.com/in-toto/attestation, spec/v1/statement.md) with an SLSA
provenance predicate (slsa.dev/spec/v1.0/provenance). It is as reproducible as the artifact: it
contains no time, host name or path of the build machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from fledge._version import __version__
from fledge.errors import ConfigError, CorruptError, MalformedError, unreadable_argument
from fledge.host.settings import MAX_EPOCH
from fledge.project import manifest as manifests
from fledge.project.sboms.table import SBOM_FORMATS, SbomFormat
from fledge.sources import ownfiles
from fledge.sources.inputs import Input
from fledge.tree.digest import Digest
from fledge.tree.regular import read_regular

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILDER = "https://github.com/volantvm/fledge"

ROOT_HASH = "dmVerityRootHash"
"""The key of the root hash among the digests of the artifact (in-toto/attestation,
spec/v1/digest_set.md, which allows others than it lists)."""

CODECS = ("crc32c", "deflate", "isal", "lz4", "pyzstd", "zstandard")
"""The packages whose versions are recorded: they compress, decompress or compute checksums."""

SBOM_LIBRARIES = ("packageurl-python", "packaging")
"""The packages whose versions are recorded for a build with [sbom]: they decide its bytes, too."""

PROVENANCE_HINT = "Get the original file from where you got the artifact."

MAX_STATEMENT_SIZE = 24 << 20
"""Maximum size of a statement in bytes."""

MAX_STATEMENT_VALUES = 1 << 19
"""Maximum values in a statement, each of which takes up to 200 bytes of memory; a mapped file has
seven."""

MAX_NESTING = 64
"""Maximum depth of values in a statement."""


class Provenance(msgspec.Struct, frozen=True):
    """The record of one build."""

    name: str
    """The artifact's file name."""
    digest: Digest
    """The digest of the artifact."""
    uncompressed: Digest | None
    """The digest of its uncompressed content; None if the artifact is not compressed."""
    config: dict[str, object]
    """The parsed fledge.toml."""
    platform: str
    epoch: int
    """The time of everything that fledge added, in seconds since 1970."""
    inputs: tuple[Input, ...]
    versions: Mapping[str, str]
    """As `versions` returns them."""
    manifest: Digest | None = None
    """The digest of the plugin manifest; None if the build made none."""
    url: str | None = None
    """Where the artifact is, as the manifest says; None if the build made none."""
    root_hash: Digest | None = None
    """The root hash of dm-verity; None if the artifact is not sealed."""
    sboms: Mapping[SbomFormat, Digest] = {}
    """The digests of the software bills of materials; empty if the build made none."""


def path_beside(artifact: Path) -> Path:
    """Return the path of an artifact's provenance."""
    # Not by with_name, which refuses a path without a name, such as /.
    return artifact.parent / f"{artifact.name}{ownfiles.PROVENANCE_SUFFIX}"


@cache
def versions(*, has_sbom: bool = False) -> dict[str, str]:
    """Return the installed versions of fledge and `CODECS`; with an SBOM, of `SBOM_LIBRARIES`."""
    libraries = SBOM_LIBRARIES if has_sbom else ()
    return {"fledge": __version__} | {name: version(name) for name in (*CODECS, *libraries)}


def serialize(record: Provenance) -> bytes:
    """Return the file that records a build: the statement as JSON.

    Raises `ConfigError` if `parse` would refuse it.
    """
    text = (json.dumps(statement(record), indent=2, sort_keys=True) + "\n").encode()
    if problem := _too_large(text):
        raise ConfigError(
            f"the provenance of {record.name} would be useless: {problem}",
            "Shorten fledge.toml, which it records, or the names of mapped files.",
        )
    return text


def statement(record: Provenance) -> dict[str, Any]:
    """Return the in-toto statement as a JSON object."""
    subject = [_subject(record.name, record.digest)]
    if record.root_hash:
        subject[0]["digest"][ROOT_HASH] = record.root_hash.hex
    if record.uncompressed:
        name = manifests.uncompressed_name(record.name)
        subject.append(_subject(name, record.uncompressed))
    parameters = {
        "config": record.config,
        "platform": record.platform,
        "SOURCE_DATE_EPOCH": record.epoch,
    }
    if record.manifest:
        subject.append(_subject(manifests.path_beside(Path(record.name)).name, record.manifest))
        parameters["url"] = record.url
    for kind, digest in sorted(record.sboms.items()):
        subject.append(_subject(f"{record.name}{SBOM_FORMATS[kind].suffix}", digest))
    return {
        "_type": STATEMENT,
        "subject": subject,
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": ownfiles.BUILD_TYPE,
                "externalParameters": parameters,
                "resolvedDependencies": [_descriptor(item) for item in record.inputs],
            },
            "runDetails": {"builder": {"id": BUILDER, "version": dict(record.versions)}},
        },
    }


def load(artifact: Path) -> Provenance:
    """Read the provenance beside an artifact. Raises as `read_statement`."""
    return read_statement(artifact)[1]


def read_statement(artifact: Path) -> tuple[dict[str, Any], Provenance]:
    """Read the statement beside an artifact, as it is and as it is understood.

    Raises as `read` and `parse_file`.
    """
    return parse_file(read(artifact), artifact)


def read(artifact: Path) -> bytes:
    """Read the file beside an artifact. Raises `ConfigError` if it does not exist."""
    path = path_beside(artifact)
    try:
        return read_regular(path, MAX_STATEMENT_SIZE + 1)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} does not exist",
            "fledge build writes it beside the artifact; keep the two together.",
        ) from error
    except OSError as error:
        raise unreadable_argument(path, error) from error


def parse_file(text: bytes, artifact: Path) -> tuple[dict[str, Any], Provenance]:
    """Parse the file beside an artifact as `parse`. Raises `CorruptError`."""
    try:
        return parse(text, artifact.name)
    except MalformedError as error:
        raise CorruptError(
            f"{path_beside(artifact)} is not the provenance of a fledge build: {error}",
            PROVENANCE_HINT,
        ) from error


def _too_large(text: bytes) -> str:
    """Return why a statement is too large to be read; nothing if it is not."""
    if len(text) > MAX_STATEMENT_SIZE:
        return f"it is larger than {MAX_STATEMENT_SIZE} bytes"
    # Each value but the first of a list or an object follows a comma.
    if sum(map(text.count, (b"{", b"[", b","))) > MAX_STATEMENT_VALUES:
        return f"it has more than {MAX_STATEMENT_VALUES} values"
    return ""


def parse(text: bytes, name: str | None = None) -> tuple[dict[str, Any], Provenance]:
    """Parse a statement, and return it as it is and as it is understood.

    ``name`` is the file name of the artifact; None: the one in the statement. Raises
    `MalformedError` if fledge did not write it.
    """
    if problem := _too_large(text):
        raise MalformedError(problem)
    try:
        top = _JsonValue("", json.loads(text))
        _check_nesting(top.value)
        return top.table(), _parse(top, top["subject"][0]["name"].text() if name is None else name)
    except (ValueError, RecursionError) as error:
        raise MalformedError(str(error)) from error


def _check_nesting(document: object) -> None:
    level = [document]
    for _ in range(MAX_NESTING):
        inner = [list(each.values()) if isinstance(each, dict) else each for each in level]
        level = [value for each in inner if isinstance(each, list) for value in each]
    if level:
        raise MalformedError(f"its values are nested more than {MAX_NESTING} deep")


class _JsonValue(msgspec.Struct, frozen=True):
    """A value in the statement and its path. Its methods raise `MalformedError` for other types."""

    path: str
    """Such as ``predicate.buildDefinition``."""
    value: object
    """None if the statement has no such value."""

    def __getitem__(self, key: str | int) -> _JsonValue:
        value = self.value
        found: object = None
        if isinstance(key, str) and isinstance(value, dict):
            found = value.get(key)
        elif isinstance(key, int) and isinstance(value, list) and key < len(value):
            found = value[key]
        return _JsonValue(f"{self.path}.{key}".lstrip("."), found)

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise MalformedError(f"{self.path} is missing or not text")
        return self.value

    def sha256(self) -> Digest:
        try:
            return Digest.from_hex(self.text())
        except MalformedError as error:
            raise MalformedError(f"{self.path}: {error}") from error

    def natural(self, maximum: int) -> int:
        if type(self.value) is not int or not 0 <= self.value <= maximum:
            raise MalformedError(
                f"{self.path} is missing or not a whole number of at most {maximum}"
            )
        return self.value

    def table(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            raise MalformedError(f"{self.path} is missing or not an object")
        return self.value

    def items(self) -> list[_JsonValue]:
        if not isinstance(self.value, list):
            raise MalformedError(f"{self.path} is missing or not a list")
        return [self[index] for index in range(len(self.value))]


def _parse(top: _JsonValue, name: str) -> Provenance:
    definition = top["predicate"]["buildDefinition"]
    subjects = top["subject"].items()
    if not subjects:
        raise MalformedError("subject is empty")
    parameters = definition["externalParameters"]
    digests = {each["name"].text(): each["digest"]["sha256"].sha256() for each in subjects[1:]}
    # By its suffix: the artifact may have another name now than when it was built.
    named = [each for each in digests if each.endswith(ownfiles.MANIFEST_SUFFIX)]
    manifest = digests.pop(named[0]) if named else None
    sboms: dict[SbomFormat, Digest] = {}
    for kind, facts in SBOM_FORMATS.items():
        for each in [each for each in digests if each.endswith(facts.suffix)]:
            sboms[kind] = digests.pop(each)
    builder = top["predicate"]["runDetails"]["builder"]
    sealed = subjects[0]["digest"][ROOT_HASH]
    return Provenance(
        name=name,
        digest=subjects[0]["digest"]["sha256"].sha256(),
        uncompressed=next(iter(digests.values()), None),
        config=parameters["config"].table(),
        platform=parameters["platform"].text(),
        epoch=parameters["SOURCE_DATE_EPOCH"].natural(MAX_EPOCH),
        inputs=tuple(_input(item) for item in definition["resolvedDependencies"].items()),
        versions={key: builder["version"][key].text() for key in builder["version"].table()},
        manifest=manifest,
        url=parameters["url"].text() if manifest else None,
        root_hash=sealed.sha256() if sealed.value is not None else None,
        sboms=sboms,
    )


def _subject(name: str, digest: Digest) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": digest.hex}}


def _descriptor(item: Input) -> dict[str, Any]:
    """Return an in-toto ResourceDescriptor (spec/v1/resource_descriptor.md)."""
    descriptor: dict[str, Any] = {
        "name": item.role,
        "uri": item.uri,
        "digest": {"sha256": item.digest.hex},
    }
    if item.facts:
        descriptor["annotations"] = dict(item.facts)
    return descriptor


def _input(item: _JsonValue) -> Input:
    facts = item["annotations"].table() if item["annotations"].value is not None else {}
    return Input(item["name"].text(), item["uri"].text(), item["digest"]["sha256"].sha256(), facts)
