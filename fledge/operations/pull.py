"""Pulls artifacts from a registry, and verifies them before they get their names."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import msgspec
import zstandard

from fledge.errors import (
    ConfigError,
    CorruptError,
    MalformedError,
    OfflineError,
    unreadable_argument,
)
from fledge.formats import find_format
from fledge.host.files import NewFile, PathLike, check_output, replacing_together
from fledge.host.output import Hasher, Output
from fledge.host.parallel import ordered
from fledge.oci import artifact as artifacts
from fledge.oci import referrers
from fledge.oci.artifact import Chunk, RemoteArtifact
from fledge.oci.manifest import Platform, best_manifests, parse_platform
from fledge.oci.reference import Name
from fledge.oci.referrers import ForeignDocumentError
from fledge.oci.repository import Places, Repository
from fledge.operations import seal
from fledge.operations.arguments import PlatformLike, as_platform, as_session
from fledge.operations.documents import (
    ENVELOPE_TYPE,
    STATEMENT_TYPE,
    Documents,
    is_manifest_of,
    parse_plugin,
)
from fledge.operations.push import registry_name
from fledge.project import manifest as plugin
from fledge.project import provenance, sealing, signatures
from fledge.project.provenance import MAX_STATEMENT_SIZE, Provenance
from fledge.project.sboms.table import MAX_SBOM_SIZE, SBOM_FORMATS, SbomFormat
from fledge.project.sboms.table import path_beside as sbom_path
from fledge.project.signatures import MAX_ENVELOPE_SIZE, MAX_SIGNATURES, Envelope, Signature
from fledge.report import Batch, human_size
from fledge.session import Session
from fledge.tree.content import read_content
from fledge.tree.digest import Digest
from fledge.tree.regular import read_regular

if TYPE_CHECKING:
    from fledge.project.policy import Policy

THREADS = 4
"""Chunks that are fetched and decompressed at the same time."""
WINDOW = 2 * THREADS
"""Chunks in memory at the same time."""
MAX_DOCUMENTS = 20
"""Documents of one type that are read about one artifact."""
PUSH_ELSEWHERE = "Whoever pushed it must push it again, with --whole or to another repository."
"""Another push of chunks relies on those that the tags of the repository have."""


class Pulled(msgspec.Struct, frozen=True):
    """One artifact that was pulled."""

    path: Path
    reference: str
    """The name of its manifest, with the digest."""
    digest: Digest
    """The digest of the file."""
    size: int
    """Bytes of the file."""
    provenance: bool
    """Whether its provenance is beside it."""
    plugin_manifest: bool
    """Whether its plugin manifest is beside it."""
    signatures: bool
    """Whether its signatures are beside it."""


def pull(
    reference: str,
    folder: PathLike = ".",
    *,
    platform: PlatformLike | None = None,
    policy: Policy | None = None,
    session: Session | None = None,
) -> list[Pulled]:
    """Pull artifacts from a registry into a folder, with plugin manifest and provenance.

    ``platform`` chooses from an index; it defaults to linux on this machine. Chunks that the cache
    has are not downloaded. Everything is verified against digests before a file gets its name; with
    a ``policy``, the signatures of the provenance are verified first.

    Raises `ConfigError` if the name is not in a registry, has nothing for the platform, or a file
    is in the way, `CorruptError` if the registry delivers anything else than the manifest says,
    `NetworkError` if it does not deliver.
    """
    session = as_session(session)
    name = registry_name(reference)
    session.cache.remember(reference)
    wanted = as_platform(platform)
    if session.offline and not name.digest:
        raise OfflineError(
            f"{name}: the tag cannot be looked up offline",
            "Write its digest, NAME@sha256:HEX, or run without --offline.",
        )
    places = Places(name, session)
    pulled = []
    for digest, remote in _choose(name, places, wanted, platform is not None, session):
        where = str(Name(name.host, name.repository, name.tag, digest))
        path = Path(folder, remote.name)
        _check_path(path)
        documents = read_documents(digest, remote, places, where, policy)
        with session.reporter.step("pull") as step:
            _pull(remote, documents, path, places, session)
            step.detail = f"{remote.name}, {human_size(remote.size)}"
        if session.offline:
            session.reporter.note(f"{remote.name}: its provenance cannot be looked up offline")
        pulled.append(
            Pulled(
                path,
                where,
                remote.digest,
                remote.size,
                documents.statement is not None,
                documents.plugin_manifest is not None,
                documents.envelope is not None,
            )
        )
    return pulled


def _choose(
    name: Name, places: Places, wanted: Platform, is_given: bool, session: Session
) -> list[tuple[Digest, RemoteArtifact]]:
    """Return the artifacts that a name stands for, by the digests of their manifests.

    ``is_given`` is whether a person has asked for the platform.
    """
    raw = places.ask(Repository.read_named_manifest)
    found = artifacts.parse(raw, str(name))
    if isinstance(found, RemoteArtifact):
        _check_platform(found, wanted, is_given, name, session)
        return [(Digest.of(raw), found)]
    chosen = best_manifests(found, wanted)
    if not chosen:
        offer = sorted({str(each.platform) for each in found if each.platform})
        raise ConfigError(
            f"{name} has no artifact for {wanted}",
            f"Choose one of these with --platform: {', '.join(offer)}"
            if offer
            else "fledge push makes what fledge pull reads.",
        )
    remotes = []
    for each in chosen:
        inner = places.ask(Repository.read_document, "manifests", "manifest", each)
        remote = artifacts.parse(inner, f"{name} ({each.digest})")
        if not isinstance(remote, RemoteArtifact):
            raise CorruptError(f"{name}: an index in an index, which fledge does not push")
        if parse_platform(remote.platform) != each.platform:
            raise CorruptError(f"{name}: the index says {each.platform} of {remote.platform}")
        remotes.append((each.digest, remote))
    if len({remote.name for _, remote in remotes}) < len(remotes):
        raise CorruptError(f"{name}: has two artifacts of the same name for {wanted}")
    return remotes


def _check_platform(
    remote: RemoteArtifact, wanted: Platform, is_given: bool, name: Name, session: Session
) -> None:
    """Raise `ConfigError` if the only artifact is not for the platform that was asked for."""
    if not remote.platform or wanted.runs(parse_platform(remote.platform)):
        return
    if is_given:
        raise ConfigError(
            f"{name} is for {remote.platform}, not for {wanted}",
            f"Write --platform {remote.platform}, or leave it out.",
        )
    session.reporter.note(f"{name} is for {remote.platform}, and this machine is {wanted}")


def _check_path(path: Path) -> None:
    """Raise `FledgeError` if a file cannot be written, or is not one that a pull may replace.

    The registry has chosen the name.
    """
    statement, manifest, envelope = _paths_beside(path)
    tree = seal.path_beside(path)
    sboms = _sboms_beside(path)
    for file in (path, statement, manifest, envelope, tree, *sboms.values()):
        check_output(file)
    try:
        if path.exists():
            find_format(path)
        if tree.exists():
            seal.check_tree(tree)
        if statement.exists():
            provenance.load(path)
        if manifest.exists():
            parse_plugin(read_regular(manifest, plugin.MAX_MANIFEST_SIZE), str(manifest))
        if envelope.exists():
            signatures.parse(read_regular(envelope, MAX_ENVELOPE_SIZE), str(envelope))
        for kind, file in sboms.items():
            start = SBOM_FORMATS[kind].start
            if file.exists() and read_regular(file, len(start)) != start:
                raise CorruptError(f"{file} is no SBOM that fledge has written")
    except CorruptError as error:
        raise ConfigError(
            f"{error.message}, so a pull does not replace it",
            "Move that file, or choose another folder with -o.",
        ) from error
    except OSError as error:
        raise unreadable_argument(path, error) from error


def _paths_beside(path: Path) -> tuple[Path, Path, Path]:
    """Return the paths of the provenance, the plugin manifest and the signatures."""
    return provenance.path_beside(path), plugin.path_beside(path), signatures.path_beside(path)


def _sboms_beside(path: Path) -> dict[SbomFormat, Path]:
    """Return the paths of the software bills of materials in all formats."""
    return {kind: sbom_path(path, kind) for kind in SBOM_FORMATS}


def read_documents(
    digest: Digest, remote: RemoteArtifact, places: Places, where: str, policy: Policy | None
) -> Documents:
    """Read the plugin manifest, the provenance and its signatures, which must be of this artifact.

    Offline there is no provenance, because it must be looked up. Raises `CorruptError` if the
    artifact is not signed as the ``policy`` asks for; None: it need not be signed.
    """
    text = None
    if remote.has_plugin_manifest:
        text = places.ask(
            Repository.read_blob, "plugin manifest", remote.config, plugin.MAX_MANIFEST_SIZE
        )
        found = parse_plugin(text, f"{where}: the config")
        if found.digest not in (None, remote.digest):
            raise CorruptError(f"{where}: the plugin manifest is that of another artifact")
    if places.are_offline:
        if policy:
            raise OfflineError(
                f"{where}: signatures cannot be looked up offline", "Run without --offline."
            )
        return Documents(text)
    envelopes: list[Envelope] = []
    for attached in _attached(digest, places, ENVELOPE_TYPE, MAX_ENVELOPE_SIZE):
        with suppress(CorruptError):  # others attach envelopes of other kinds
            envelopes.append(signatures.parse(attached, where))
    if policy:
        # Imported late because cryptography is slow to load, and only signatures need it.
        from fledge.operations import trust  # noqa: PLC0415

        statements = iter([trust.check(envelopes, policy, remote.digest, where).payload])
    else:
        statements = _attached(digest, places, STATEMENT_TYPE, MAX_STATEMENT_SIZE)
    for statement in statements:
        try:
            _, record = provenance.parse(statement, remote.name)
        except MalformedError:
            continue  # others attach statements of other kinds
        is_about_it = (record.digest, record.platform) == (remote.digest, remote.platform)
        is_unsigned = record.manifest is None and not policy
        if is_about_it and (is_unsigned or is_manifest_of(record, text)):
            sboms = _read_sboms(digest, record, places)
            return Documents(text, statement, record, _joined(envelopes, statement), sboms)
    if policy:
        raise CorruptError(
            f"{where}: the plugin manifest or the platform is not the one that was signed",
            "Do not use it. Ask whoever signs it.",
        )
    return Documents(text)


def _read_sboms(digest: Digest, record: Provenance, places: Places) -> dict[SbomFormat, bytes]:
    """Read the software bills of materials that the provenance records, as far as the registry has
    them.
    """
    found = {}
    for kind, wanted in record.sboms.items():
        media_type = SBOM_FORMATS[kind].media_type
        for text in _attached(digest, places, media_type, MAX_SBOM_SIZE):
            if Digest.of(text) == wanted:  # others attach documents of their own
                found[kind] = text
                break
    return found


def _attached(digest: Digest, places: Places, media_type: str, limit: int) -> Iterator[bytes]:
    """Yield the documents of a type that are attached to a manifest."""
    for each in places.search(referrers.find, digest, media_type)[:MAX_DOCUMENTS]:
        with suppress(ForeignDocumentError):
            yield places.ask(referrers.read, each, limit)


def _joined(envelopes: Sequence[Envelope], statement: bytes) -> bytes | None:
    """Return one envelope with all signatures of a statement; None if there are none."""
    found: list[Signature] = []
    for envelope in envelopes:
        if envelope.payload == statement:
            found += [own for own in envelope.signatures if own not in found]
    if not found:
        return None
    return signatures.serialize(Envelope(statement, tuple(found[:MAX_SIGNATURES])))


def _pull(
    remote: RemoteArtifact, documents: Documents, path: Path, places: Places, session: Session
) -> None:
    """Write an artifact and its documents, together."""
    files: dict[Path, bytes] = {}
    if documents.statement is not None:
        files[provenance.path_beside(path)] = documents.statement
    if documents.plugin_manifest is not None:
        files[plugin.path_beside(path)] = _at_home(documents.plugin_manifest, path)
    if documents.envelope is not None:
        files[signatures.path_beside(path)] = documents.envelope
    for kind, sbom in documents.sboms.items():
        files[sbom_path(path, kind)] = sbom
    record = documents.provenance
    is_beside = record is not None and sealing.is_beside(record.config)
    trees = [seal.path_beside(path)] if is_beside else []
    for kind in record.sboms if record else ():
        if kind not in documents.sboms:
            title = SBOM_FORMATS[kind].title
            session.reporter.note(f"{remote.name}: the registry does not have its SBOM ({title})")
    for file in (*_paths_beside(path), *_sboms_beside(path).values(), seal.path_beside(path)):
        if file not in (*files, *trees) and file.exists():
            session.reporter.note(f"{file} stays, and may be that of another artifact")
    with replacing_together(path, *trees, *files) as [new, *others]:
        write(remote, new, places, session)
        if record and is_beside:
            seal.write_again(new, others.pop(0), record)
        for other, text in zip(others, files.values(), strict=True):
            with other.open() as opened:
                opened.write(text)


def _at_home(text: bytes, path: Path) -> bytes:
    """Return a plugin manifest for an artifact at ``path``, unless it is at a URL."""
    found = parse_plugin(text, str(path))
    if not found.url.startswith("/"):
        return text
    return plugin.serialize(plugin.relocated(found, str(path.absolute())))


def write(remote: RemoteArtifact, new: NewFile, places: Places, session: Session) -> None:
    """Fetch the content of an artifact and write it to an empty file.

    Raises `CorruptError` if it is not what the manifest says.
    """
    with new.open() as file:
        digest = _write(remote, file.fileno(), places, session)
    if digest != remote.digest:
        raise CorruptError(
            f"{remote.name} has sha256 {digest.hex}, but its manifest says {remote.digest.hex}",
            PUSH_ELSEWHERE,
        )


def _write(remote: RemoteArtifact, file: int, places: Places, session: Session) -> Digest:
    """Write the content of an artifact to an empty open file, and return its digest."""
    with (
        closing(Hasher()) as hasher,
        closing(Output(file, hasher)) as output,
        closing(_read_parts(remote, places, session)) as parts,
    ):
        for offset, data in parts:
            output.write(data, offset)
        output.finish(remote.size)
        return hasher.digest()


Parts = Generator[tuple[int, bytes | memoryview], None, None]
"""The content of an artifact in order: each part with its offset. A part is valid until the next
one is asked for."""


def _read_parts(remote: RemoteArtifact, places: Places, session: Session) -> Parts:
    if remote.whole:
        blob = places.ask(Repository.fetch, "blobs", remote.name, remote.whole)
        offset = 0
        for piece in read_content(blob):
            yield offset, piece
            offset += len(piece)
        return
    size = sum(chunk.blob.size for chunk in remote.chunks)
    # Used again and again: to get new memory takes as long as to decompress into it.
    buffers: SimpleQueue[bytearray] = SimpleQueue()
    for _ in range(min(WINDOW, len(remote.chunks))):
        buffers.put(bytearray(remote.chunk_size))
    with session.reporter.batch("chunks", len(remote.chunks), size) as batch:

        def fetch(chunk: Chunk) -> bytearray:
            return _fetch(remote, places, batch, chunk, buffers.get())

        with closing(ordered(fetch, remote.chunks, THREADS, WINDOW)) as parts:
            for chunk, buffer in zip(remote.chunks, parts, strict=True):
                yield chunk.offset, memoryview(buffer)[: remote.length(chunk)]
                buffers.put(buffer)


def _fetch(
    remote: RemoteArtifact, places: Places, batch: Batch, chunk: Chunk, buffer: bytearray
) -> bytearray:
    """Fetch one chunk, and decompress it into a buffer. Return the buffer.

    A later push relies on the digests of the parts, so each is verified.
    """
    blob = places.ask(Repository.fetch, "blobs", _label(remote, chunk), chunk.blob)
    batch.arrived(blob.size)
    packed = b"".join(read_content(blob))
    length = remote.length(chunk)
    try:
        # The size of its window decides how much memory a frame takes.
        decompressor = zstandard.ZstdDecompressor(max_window_size=artifacts.MAX_CHUNK)
        with decompressor.stream_reader(packed) as reader:
            part, size = memoryview(buffer)[:length], 0
            while size < length and (count := reader.readinto(part[size:])):
                size += count
            if size < length or reader.read(1):
                raise _wrong_chunk(remote, chunk, "has another size than the manifest says")
    except zstandard.ZstdError as error:
        raise _wrong_chunk(remote, chunk, f"is damaged: {error}") from error
    if Digest.of(part) != chunk.digest:
        raise _wrong_chunk(remote, chunk, "has other content than the manifest says")
    batch.finished()
    return buffer


def _label(remote: RemoteArtifact, chunk: Chunk) -> str:
    number, count = chunk.offset // remote.chunk_size + 1, -(-remote.size // remote.chunk_size)
    return f"chunk {number} of {count}"


def _wrong_chunk(remote: RemoteArtifact, chunk: Chunk, problem: str) -> CorruptError:
    return CorruptError(f"{remote.name}: {_label(remote, chunk)} {problem}", PUSH_ELSEWHERE)
