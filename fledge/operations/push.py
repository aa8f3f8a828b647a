"""Pushes artifacts to a registry, each with its plugin manifest and its provenance."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path

import msgspec
import zstandard

from fledge.errors import ConfigError, CorruptError, unreadable_argument
from fledge.formats import find_format
from fledge.host.files import PathLike
from fledge.host.output import Hasher
from fledge.host.parallel import ordered
from fledge.oci import artifact as artifacts
from fledge.oci import referrers
from fledge.oci.artifact import Chunk, RemoteArtifact
from fledge.oci.login import PUSH
from fledge.oci.manifest import Descriptor
from fledge.oci.reference import Name, RegistryReference, parse
from fledge.oci.referrers import Document
from fledge.oci.repository import BlobUnknownError, NoManifestError, Repository
from fledge.operations.arguments import as_session
from fledge.operations.documents import (
    ENVELOPE_TYPE,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    Documents,
    parse_plugin,
)
from fledge.operations.documents import read as read_documents
from fledge.operations.manifest import image_input
from fledge.project import signatures
from fledge.project.manifest import plain_name
from fledge.project.provenance import PREDICATE, path_beside
from fledge.project.sboms.table import SBOM_FORMATS
from fledge.project.sboms.table import path_beside as sbom_path
from fledge.report import Transfer, counted, human_size
from fledge.session import Session
from fledge.tree.content import hash_file
from fledge.tree.digest import Digest
from fledge.tree.media import MediaType
from fledge.tree.names import by_number

THREADS = 8
"""Chunks that are compressed and sent at the same time. Most wait for the network."""
WINDOW = 2 * THREADS
"""Chunks in memory at the same time."""
LEVEL = 3
"""The level of zstd."""
SEARCHED_TAGS = 3
"""Tags whose chunks are looked at if the tag of a push is new."""


class Pushed(msgspec.Struct, frozen=True):
    """One artifact that was pushed."""

    path: Path
    reference: str
    """The name of its manifest, with the digest."""
    digest: Digest
    """The digest of the file."""
    size: int
    """Bytes of the file."""
    sent: int
    """Bytes that were sent; what the registry had already is not sent again."""


def push(
    paths: Sequence[PathLike] | PathLike,
    reference: str,
    *,
    whole: bool = False,
    session: Session | None = None,
) -> list[Pushed]:
    """Push artifacts to a registry, under one name or, if it ends in a slash, each under its own.

    Its own name is that in its plugin manifest, with the version as the tag, or else that of the
    file, without a tag.

    The plugin manifest and the provenance beside an artifact go with it. Content is sent in chunks,
    of which those that the registry has are left out; with ``whole``, as one blob that any client
    can read. Several artifacts come under an index, for each platform those that are for it.

    The tag is written last, so it never stands for half of a push. Raises `ConfigError` for a name
    that cannot be pushed to, `CorruptError` if an artifact is not what its provenance says,
    `NetworkError` if the registry does not take it.
    """
    session = as_session(session)
    files = [paths] if isinstance(paths, str | os.PathLike) else paths
    common = None if reference.endswith("/") else _tag(reference)
    by_name: dict[Name, list[_LocalArtifact]] = {}
    for each in files:
        artifact = _LocalArtifact.open(Path(each))
        name = common or _tag(artifact.own_name(reference))
        by_name.setdefault(name, []).append(artifact)
    for together in by_name.values():
        _check_names(together)
    return [
        each
        for name, together in by_name.items()
        for each in _push_together(together, name, whole, session)
    ]


def _tag(reference: str) -> Name:
    """Parse the name of a tag. Raises `ConfigError`."""
    name = registry_name(reference)
    if name.digest:
        raise ConfigError(
            f"{reference} names a digest, which only the content can decide",
            "Name a tag, such as :1.0.",
        )
    return name


def _push_together(
    local_artifacts: Sequence[_LocalArtifact], name: Name, whole: bool, session: Session
) -> list[Pushed]:
    """Push artifacts under one tag, which is written last."""
    repository = Repository.open(name, session, PUSH)
    known = _known_chunks(repository)
    pushed: list[Pushed] = []
    stored: dict[Descriptor, _Stored] = {}
    for each in local_artifacts:
        with session.reporter.step("push") as step:
            found = _push(repository, each, known, whole, session)
            step.detail = found.detail
        stored[found.descriptor] = found
        remote = found.remote
        pinned = Name(name.host, name.repository, name.tag, found.descriptor.digest)
        pushed.append(Pushed(each.path, str(pinned), remote.digest, remote.size, found.sent))
    if len(stored) == 1:
        repository.put_manifest(str(name.tag), artifacts.MANIFEST_TYPE, found.manifest)
    else:
        index = artifacts.serialize_index({key: each.remote for key, each in stored.items()})
        repository.put_manifest(str(name.tag), artifacts.INDEX_TYPE, index)
    return pushed


def store(path: Path, name: Name, session: Session) -> int:
    """Push an artifact in chunks under a tag of a build cache. Return the bytes that were sent.

    The manifest records when, for `shared_cache.prune`. Raises as `push`.
    """
    repository = Repository.open(name, session, PUSH)
    local = msgspec.structs.replace(_LocalArtifact.open(path), pushed=int(time.time()))
    stored = _push(repository, local, {}, False, session)
    repository.put_manifest(str(name.tag), artifacts.MANIFEST_TYPE, stored.manifest)
    return stored.sent


class _Stored(msgspec.Struct, frozen=True):
    """An artifact that the registry has, as yet without a tag."""

    remote: RemoteArtifact
    manifest: bytes
    """The same, as the registry has it."""
    descriptor: Descriptor
    """That of the manifest."""
    sent: int
    """Bytes that were sent."""
    detail: str
    """What was sent, for people."""


def _push(
    repository: Repository,
    source: _LocalArtifact,
    known: Mapping[Digest, Descriptor],
    whole: bool,
    session: Session,
) -> _Stored:
    """Push an artifact and its documents, without a tag."""
    sending = _Sending(repository, session, known)
    remote = sending.send(source, whole)
    manifest = artifacts.serialize(remote)
    subject = Descriptor(artifacts.MANIFEST_TYPE, Digest.of(manifest), len(manifest))
    try:
        repository.put_manifest(str(subject.digest), artifacts.MANIFEST_TYPE, manifest)
    except BlobUnknownError:
        if not known:
            raise
        # Not even what the tag stands for is complete there: ask for every chunk.
        return _push(repository, source, {}, whole, session)
    referrers.attach(repository, subject, list(_attached(source)))
    detail = f"{source.path.name}, {human_size(sending.sent)} sent"
    if not whole:
        detail += f", {sending.new} of {counted(len(remote.chunks), 'chunk')} new"
    return _Stored(remote, manifest, subject, sending.sent, detail)


def registry_name(reference: str) -> Name:
    """Parse the name of an artifact in a registry. Raises `ConfigError` for any other reference."""
    found = parse(reference, Path())
    name = found.name if isinstance(found, RegistryReference) else found
    if not isinstance(name, Name):
        raise ConfigError(
            f"{reference} is not in a registry", "Write HOST/NAME:TAG, such as ghcr.io/me/web:1.0."
        )
    return name


class _LocalArtifact(msgspec.Struct, frozen=True):
    """An artifact to push."""

    path: Path
    kind: str
    media_type: MediaType
    """What a registry calls the whole file."""
    size: int
    documents: Documents
    pushed: int = 0
    """As `RemoteArtifact.pushed`."""

    @classmethod
    def open(cls, path: Path) -> _LocalArtifact:
        format_, size = find_format(path)
        if not artifacts.is_file_name(path.name):
            raise ConfigError(
                f"{path}: a pull would not write a file of that name",
                "Rename it: without control characters, no dot or dash in front, at most"
                f" {artifacts.MAX_NAME} bytes.",
            )
        if size > artifacts.MAX_SIZE:
            most = human_size(artifacts.MAX_SIZE)
            raise ConfigError(f"{path} has more than {most}", "Push a smaller artifact.")
        media_type = format_.media_type or MediaType(artifacts.FILE_TYPE)
        return cls(path, format_.name, media_type, size, read_documents(path))

    def own_name(self, prefix: str) -> str:
        """Return the reference of this artifact if it is pushed under its own name."""
        plugin = self.documents.plugin_manifest
        if plugin is None:
            return prefix + plain_name(self.path.name)
        found = parse_plugin(plugin, self.path.name)
        return f"{prefix}{found.name}:{found.version}"

    @property
    def platform(self) -> str:
        statement = self.documents.provenance
        return statement.platform if statement else ""


def _check_names(found: Sequence[_LocalArtifact]) -> None:
    """Raise `ConfigError` if several artifacts could not be told from each other."""
    seen: dict[tuple[str, str], Path] = {}
    for each in found:
        if len(found) > 1 and not each.platform:
            raise ConfigError(
                f"{each.path} has no provenance that says which platform it is for",
                "Push it alone, or build it again.",
            )
        other = seen.setdefault((each.platform, each.path.name), each.path)
        if other is not each.path:
            raise ConfigError(
                f"{other} and {each.path} have the same name and platform",
                "Rename one, or push it under another tag.",
            )


def _known_chunks(repository: Repository) -> dict[Digest, Descriptor]:
    """Return the chunks that the registry is sure to have, by the digest of their content.

    They are those of what the tag stands for now or, if it is new, of the highest other versions.
    """
    known = _chunks_of(repository, str(repository.name.tag))
    if not known:
        highest = sorted(repository.tags(), key=by_number)[-SEARCHED_TAGS:]
        for tag in highest:
            known |= _chunks_of(repository, tag)
    return known


def _chunks_of(repository: Repository, tag: str) -> dict[Digest, Descriptor]:
    """Return the chunks of what a tag stands for; none if that is something else."""
    where = f"{repository.name}: {tag}"
    try:
        found = artifacts.parse(repository.read_manifest(tag), where)
        if isinstance(found, RemoteArtifact):
            remotes: list[object] = [found]
        else:
            documents = (repository.read_document("manifests", "manifest", each) for each in found)
            remotes = [artifacts.parse(raw, where) for raw in documents]
    except (NoManifestError, CorruptError):
        return {}
    return {
        chunk.digest: chunk.blob
        for remote in remotes
        if isinstance(remote, RemoteArtifact)
        for chunk in remote.chunks
    }


def _attached(source: _LocalArtifact) -> Iterator[Document]:
    """Yield what is attached to the manifest of an artifact."""
    if source.documents.statement:
        name = path_beside(source.path).name
        statement = source.documents.statement
        yield Document(STATEMENT_TYPE, statement, name, {PREDICATE_TYPE: PREDICATE})
    if source.documents.envelope:
        name = signatures.path_beside(source.path).name
        yield Document(ENVELOPE_TYPE, source.documents.envelope, name, {PREDICATE_TYPE: PREDICATE})
    for kind, text in source.documents.sboms.items():
        yield Document(SBOM_FORMATS[kind].media_type, text, sbom_path(source.path, kind).name)


class _Sending:
    """One artifact on its way to a registry."""

    def __init__(
        self, repository: Repository, session: Session, known: Mapping[Digest, Descriptor]
    ) -> None:
        self._repository = repository
        self._session = session
        self._known = known
        self._compressors = threading.local()
        self._lock = threading.Lock()
        self.sent = 0
        """Bytes that were uploaded."""
        self.new = 0
        """Chunks that were uploaded."""

    def send(self, source: _LocalArtifact, whole: bool) -> RemoteArtifact:
        """Upload the content and the config of an artifact. Return its manifest.

        Raises `CorruptError` if the content is not what its provenance says.
        """
        record = source.documents.provenance
        with self._session.reporter.transfer(source.path.name) as transfer:
            transfer.restart(0, source.size)
            try:
                if whole:
                    content = self._send_file(source, record.digest if record else None, transfer)
                else:
                    content = self._send_chunks(source, transfer)
            except OSError as error:
                raise unreadable_argument(source.path, error) from error
        if record and content.digest != record.digest:
            raise CorruptError(
                f"{source.path} has sha256 {content.digest.hex}, but its provenance says"
                f" {record.digest.hex}",
                "Either file has changed since the build: build it again.",
            )
        return msgspec.structs.replace(content, config=self._send_config(source.documents))

    def _send_file(
        self, source: _LocalArtifact, recorded: Digest | None, transfer: Transfer
    ) -> RemoteArtifact:
        """Upload a file as one blob."""
        blob = hash_file(source.path)
        digest = blob.digest
        # The registry would take a file that has changed; its provenance is checked before.
        if recorded in (None, digest) and not self._repository.has_blob(digest):
            self._repository.upload(blob, digest, transfer)
            self.sent += blob.size
        whole = Descriptor(source.media_type.name, digest, blob.size)
        return msgspec.structs.replace(
            _remote(source, digest), whole=whole, os_features=source.media_type.os_features
        )

    def _send_chunks(self, source: _LocalArtifact, transfer: Transfer) -> RemoteArtifact:
        """Upload the chunks of a file that the registry does not have."""
        length = artifacts.chunk_size(source.size)
        chunks = []
        with source.path.open("rb") as file, closing(Hasher()) as hasher:
            parts = _parts(file.fileno(), source.size, length, hasher, transfer)
            sending = ordered(self._send_chunk, parts, THREADS, WINDOW)
            with closing(sending):
                for chunk in sending:
                    chunks.append(chunk)
                    transfer.advance(min(length, source.size - chunk.offset))
            digest = hasher.digest()
        remote = _remote(source, digest)
        return msgspec.structs.replace(remote, chunk_size=length, chunks=tuple(chunks))

    def _send_chunk(self, part: tuple[int, bytes]) -> Chunk:
        offset, data = part
        digest = Digest.of(data)
        if blob := self._known.get(digest):
            return Chunk(offset, digest, blob)
        packed = self._compressor().compress(data)
        blob = Descriptor(artifacts.CHUNK_TYPE, Digest.of(packed), len(packed))
        if not self._repository.has_blob(blob.digest):
            self._repository.upload(packed, blob.digest, Transfer())
            with self._lock:
                self.sent += len(packed)
                self.new += 1
        return Chunk(offset, digest, blob)

    def _compressor(self) -> zstandard.ZstdCompressor:
        """Return the compressor of this thread: they cannot be shared."""
        if not hasattr(self._compressors, "own"):
            self._compressors.own = zstandard.ZstdCompressor(LEVEL)
        found: zstandard.ZstdCompressor = self._compressors.own
        return found

    def _send_config(self, documents: Documents) -> Descriptor:
        data, config = artifacts.EMPTY, artifacts.EMPTY_CONFIG
        if documents.plugin_manifest is not None:
            data = documents.plugin_manifest
            config = Descriptor(artifacts.PLUGIN_TYPE, Digest.of(data), len(data))
        if not self._repository.has_blob(config.digest):
            self._repository.upload(data, config.digest, Transfer())
        return config


def _parts(
    file: int, size: int, length: int, hasher: Hasher, transfer: Transfer
) -> Iterator[tuple[int, bytes]]:
    """Yield the parts of an open file that are not zeros, each with its offset.

    ``hasher`` receives the whole file, ``transfer`` is told what is left out.
    """
    zeros = bytes(length)
    hashing: deque[Future[None]] = deque()
    for offset in range(0, size, length):
        data = os.pread(file, min(length, size - offset), offset)
        if len(data) < min(length, size - offset):
            raise OSError(errno.EIO, "it has become shorter")
        hashing.append(hasher.update(data))
        if len(hashing) == WINDOW:
            hashing.popleft().result()
        if data == zeros[: len(data)]:
            transfer.advance(len(data))
        else:
            yield offset, data


def _remote(source: _LocalArtifact, digest: Digest) -> RemoteArtifact:
    """Return the manifest of an artifact without its content and config."""
    record = source.documents.provenance
    return RemoteArtifact(
        name=source.path.name,
        digest=digest,
        size=source.size,
        kind=source.kind,
        platform=record.platform if record else "",
        config=artifacts.EMPTY_CONFIG,
        about=_about(source.documents),
        pushed=source.pushed,
    )


def _about(documents: Documents) -> dict[str, str]:
    """Return the annotations that people expect (OCI image-spec, annotations.md)."""
    about = {}
    if record := documents.provenance:
        created = datetime.fromtimestamp(record.epoch, timezone.utc)
        about["org.opencontainers.image.created"] = created.strftime("%Y-%m-%dT%H:%M:%SZ")
        image = image_input(record.inputs)
        if image and image.uri.startswith("docker://"):
            name, _, digest = image.uri.removeprefix("docker://").partition("@")
            about["org.opencontainers.image.base.name"] = name
            about["org.opencontainers.image.base.digest"] = digest
    if documents.plugin_manifest is not None:
        plugin = parse_plugin(documents.plugin_manifest, "the plugin manifest")
        about["org.opencontainers.image.version"] = plugin.version
    return about
