"""The documents of an artifact: its plugin manifest, its provenance and its SBOMs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from fledge.errors import CorruptError, MalformedError, unreadable_argument
from fledge.project import manifest as plugin
from fledge.project import provenance, signatures
from fledge.project.manifest import PluginManifest
from fledge.project.provenance import MAX_STATEMENT_SIZE, Provenance
from fledge.project.sboms.table import MAX_SBOM_SIZE, SbomFormat
from fledge.project.sboms.table import path_beside as sbom_path
from fledge.project.signatures import MAX_ENVELOPE_SIZE
from fledge.tree.digest import Digest
from fledge.tree.regular import read_regular

STATEMENT_TYPE = "application/vnd.in-toto+json"
"""The media type of an in-toto statement (in-toto/attestation, spec/v1/envelope.md)."""
ENVELOPE_TYPE = "application/vnd.dsse.envelope.v1+json"
"""The media type of a DSSE envelope (secure-systems-lab/dsse, envelope.md)."""
PREDICATE_TYPE = "in-toto.io/predicate-type"
"""The annotation of a statement in a registry with the type of its predicate."""


class Documents(msgspec.Struct, frozen=True):
    """What belongs to an artifact."""

    plugin_manifest: bytes | None = None
    """Its plugin manifest, as the file has it; None if it has none."""
    statement: bytes | None = None
    """Its provenance, as the file has it; None if it has none."""
    provenance: Provenance | None = None
    """The same, understood."""
    envelope: bytes | None = None
    """The signatures of its provenance (`signatures`); None if it is not signed."""
    sboms: Mapping[SbomFormat, bytes] = {}
    """The software bills of materials that its provenance records, as the files have them."""


def read(artifact: Path) -> Documents:
    """Read the documents beside an artifact.

    Raises `CorruptError` if they are malformed, or are not those of one build.
    """
    path = plugin.path_beside(artifact)
    manifest = read_beside(path, plugin.MAX_MANIFEST_SIZE)
    statement = read_beside(provenance.path_beside(artifact), MAX_STATEMENT_SIZE + 1)
    record = None
    if statement is not None:
        record = provenance.parse_file(statement, artifact)[1]
    if manifest is not None:
        parse_plugin(manifest, str(path))
    if record and record.manifest and not is_manifest_of(record, manifest):
        raise CorruptError(
            f"{path} is not the plugin manifest that the provenance of {artifact.name} names",
            "Build the artifact again.",
        )
    signed = signatures.path_beside(artifact)
    envelope = read_beside(signed, MAX_ENVELOPE_SIZE)
    if envelope is not None and signatures.parse(envelope, str(signed)).payload != statement:
        raise CorruptError(
            f"{signed} is not for the provenance of {artifact.name} as it is now",
            "Sign the artifact again with fledge sign, or remove that file.",
        )
    sboms = _read_sboms(artifact, record) if record else {}
    return Documents(manifest, statement, record, envelope, sboms)


def _read_sboms(artifact: Path, record: Provenance) -> dict[SbomFormat, bytes]:
    """Read the software bills of materials that are recorded. Raises `CorruptError`."""
    found = {}
    for kind, digest in record.sboms.items():
        path = sbom_path(artifact, kind)
        text = read_beside(path, MAX_SBOM_SIZE)
        if text is None or Digest.of(text) != digest:
            raise CorruptError(
                f"{path} is not the software bill of materials that the provenance of"
                f" {artifact.name} names",
                "Build the artifact again.",
            )
        found[kind] = text
    return found


def parse_plugin(text: bytes, where: str) -> PluginManifest:
    """Parse a plugin manifest. Raises `CorruptError` if it is malformed."""
    try:
        return plugin.read(text)
    except MalformedError as error:
        raise CorruptError(f"{where} is not a plugin manifest: {error}") from error


def is_manifest_of(record: Provenance, text: bytes | None) -> bool:
    """Return whether a plugin manifest is the one that a build has recorded. None: there is none.

    It may say another place for the artifact: a pull writes the one that it has put it at.
    """
    if record.manifest is None or text is None:
        return record.manifest is None and text is None
    if Digest.of(text) == record.manifest:
        return True
    try:
        moved = plugin.relocated(parse_plugin(text, ""), record.url or "")
    except CorruptError:
        return False
    return Digest.of(plugin.serialize(moved)) == record.manifest


def read_beside(path: Path, limit: int) -> bytes | None:
    """Read at most ``limit`` bytes of a file beside an artifact; None if it does not exist.

    Raises `FledgeError` if it cannot be read.
    """
    try:
        return read_regular(path, limit)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable_argument(path, error) from error
