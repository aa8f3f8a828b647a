"""Pulls artifacts from a registry, and verifies them before they get their names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import msgspec
import zstandard

from fledge.errors import ConfigError, CorruptError
from fledge.formats import find_format
from fledge.host.files import NewFile, PathLike, check_output, replacing_together
from fledge.host.output import Hasher, Output
from fledge.host.parallel import ordered
from fledge.oci import artifact as artifacts
from fledge.oci import referrers
from fledge.oci.artifact import Chunk, RemoteArtifact
from fledge.oci.manifest import Platform, best_manifests, parse_platform
from fledge.oci.reference import Name
from fledge.oci.repository import Places, Repository
from fledge.operations.arguments import PlatformLike, as_platform, as_session
from fledge.operations.documents import (
    STATEMENT_TYPE,
    Documents,
    is_manifest_of,
    parse_plugin,
)
from fledge.operations.push import registry_name
from fledge.project import manifest as plugin
from fledge.project import provenance
from fledge.project.provenance import MAX_STATEMENT_SIZE
from fledge.report import Batch, human_size
from fledge.session import Session
from fledge.tree.content import read_content
from fledge.tree.digest import Digest

THREADS = 4
"""Chunks that are fetched and decompressed at the same time."""
WINDOW = 2 * THREADS
"""Chunks in memory at the same time."""
MAX_STATEMENTS = 20
"""Statements about one artifact that are read."""


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


def pull(
    reference: str,
    folder: PathLike = ".",
    *,
    platform: PlatformLike | None = None,
    session: Session | None = None,
) -> list[Pulled]:
    """Pull artifacts from a registry into a folder, with plugin manifest and provenance.

    ``platform`` chooses from an index; it defaults to linux on this machine. Chunks that the cache
    has are not downloaded. Everything is verified against digests before a file gets its name.

    Raises `ConfigError` if the name is not in a registry, has nothing for the platform, or a file
    is in the way, `CorruptError` if the registry delivers anything else than the manifest says,
    `NetworkError` if it does not deliver.
    """
    session = as_session(session)
    name = registry_name(reference)
    places = Places(name, session)
    pulled = []
    for digest, remote in _choose(name, places, platform, session):
        where = str(Name(name.host, name.repository, name.tag, digest))
        path = Path(folder, remote.name)
        _check_path(path, folder)
        documents = read_documents(digest, remote, places, where)
        with session.reporter.step("pull") as step:
            _pull(remote, documents, path, places, session)
            step.detail = f"{remote.name}, {human_size(remote.size)}"
        pulled.append(
            Pulled(
                path,
                where,
                remote.digest,
                remote.size,
                documents.statement is not None,
                documents.plugin_manifest is not None,
            )
        )
    return pulled


def _choose(
    name: Name, places: Places, platform: PlatformLike | None, session: Session
) -> list[tuple[Digest, RemoteArtifact]]:
    """Return the artifacts that a name stands for, by the digests of their manifests."""
    raw = places.ask(Repository.read_named_manifest)
    found = artifacts.parse(raw, str(name))
    wanted = as_platform(platform)
    if isinstance(found, RemoteArtifact):
        _check_platform(found, wanted, platform is not None, name, session)
        return [(Digest.of(raw), found)]
    chosen = best_manifests(found, wanted)
    if not chosen:
        offer = sorted({str(each.platform) for each in found if each.platform})
        raise ConfigError(
            f"{name} has no artifact for {wanted}",
            f"Choose one of these with --platform: {', '.join(offer)}" if offer else "",
        )
    remotes = []
    for each in chosen:
        inner = places.ask(Repository.read_document, "manifests", "manifest", each)
        remote = artifacts.parse(inner, f"{name} ({each.digest})")
        if not isinstance(remote, RemoteArtifact):
            raise CorruptError(f"{name}: an index in an index, which fledge does not push")
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


def _check_path(path: Path, folder: PathLike) -> None:
    """Raise `FledgeError` if a file cannot be written, or is not one that a pull may replace."""
    check_output(path)
    if path.exists():
        try:
            find_format(path)
        except CorruptError as error:
            raise ConfigError(
                f"{path} is in the way: it is not an artifact",
                "Choose another folder with -o DIR.",
            ) from error


def read_documents(digest: Digest, remote: RemoteArtifact, places: Places, where: str) -> Documents:
    """Read the plugin manifest and the provenance, which must be of this artifact."""
    text = None
    if remote.has_plugin_manifest:
        text = places.ask(
            Repository.read_blob, "plugin manifest", remote.config, plugin.MAX_MANIFEST_SIZE
        )
        found = parse_plugin(text, f"{where}: the config")
        if found.digest not in (None, remote.digest):
            raise CorruptError(f"{where}: the plugin manifest is that of another artifact")
    for statement in _statements(digest, places):
        _, record = provenance.parse(statement, remote.name, f"{where}: the provenance")
        if record.digest != remote.digest:
            continue
        if record.manifest and not (text and is_manifest_of(record, text)):
            continue
        return Documents(text, statement, record)
    return Documents(text)


def _statements(digest: Digest, places: Places) -> Iterator[bytes]:
    for each in places.ask(referrers.find, digest, STATEMENT_TYPE)[:MAX_STATEMENTS]:
        yield places.ask(referrers.read, each, MAX_STATEMENT_SIZE)


def _pull(
    remote: RemoteArtifact, documents: Documents, path: Path, places: Places, session: Session
) -> None:
    """Write an artifact and its documents, together."""
    files: dict[Path, bytes] = {}
    if documents.statement is not None:
        files[provenance.path_beside(path)] = documents.statement
    if documents.plugin_manifest is not None:
        files[plugin.path_beside(path)] = _at_home(documents.plugin_manifest, path)
    with replacing_together(path, *files) as [new, *others]:
        write(remote, new, places, session)
        for file, text in zip(others, files.values(), strict=True):
            with file.open() as opened:
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
    digest = _write(remote, new, places, session)
    if digest != remote.digest:
        raise CorruptError(
            f"{remote.name} has sha256 {digest.hex}, but its manifest says {remote.digest.hex}",
            "Whoever pushed it must push it again.",
        )


def _write(remote: RemoteArtifact, new: NewFile, places: Places, session: Session) -> Digest:
    """Write the content of an artifact, and return its digest."""
    if remote.whole:
        blob = places.ask(Repository.fetch, "blobs", remote.name, remote.whole)
        with new.open() as file, closing(Hasher()) as hasher:
            for piece in read_content(blob):
                file.write(piece)
                hasher.update(piece)
            return hasher.digest()
    size = sum(chunk.blob.size for chunk in remote.chunks)
    with (
        session.reporter.batch("chunks", len(remote.chunks), size) as batch,
        new.open() as file,
        closing(Hasher()) as hasher,
        closing(Output(file.fileno(), hasher)) as output,
        closing(
            ordered(partial(_fetch, remote, places, batch), remote.chunks, THREADS, WINDOW)
        ) as parts,
    ):
        for chunk, data in zip(remote.chunks, parts, strict=True):
            output.write(data, chunk.offset)
        output.finish(remote.size)
        return hasher.digest()


def _fetch(remote: RemoteArtifact, places: Places, batch: Batch, chunk: Chunk) -> bytes:
    """Fetch one chunk, and return the part of the file that it holds."""
    number, count = chunk.offset // remote.chunk_size + 1, -(-remote.size // remote.chunk_size)
    label = f"chunk {number} of {count}"
    blob = places.ask(Repository.fetch, "blobs", label, chunk.blob)
    batch.arrived(blob.size)
    packed = b"".join(read_content(blob))
    length = remote.length(chunk)
    try:
        # What the frame says decides how much memory is taken.
        fits = zstandard.frame_content_size(packed) == length
        data = _decompressor().decompress(packed) if fits else b""
    except zstandard.ZstdError as error:
        raise CorruptError(f"{remote.name}: {label} is damaged: {error}") from error
    if len(data) != length or Digest.of(data) != chunk.digest:
        raise CorruptError(
            f"{remote.name}: {label} has other content than the manifest says",
            "Whoever pushed it must push it again.",
        )
    batch.finished()
    return data


def _decompressor() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(max_window_size=artifacts.MAX_CHUNK)
