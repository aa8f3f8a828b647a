"""The manifest of a fledge artifact in a registry, as data.

An artifact is an OCI artifact (image-spec 1.1, manifest.md, "Guidelines for Artifact Usage"): the
config is its plugin manifest or empty, and the layers are its content, either as one plain blob or
as chunks. A chunk is a part of the file of a fixed size at a multiple of that size, compressed by
zstd. Chunks of zeros are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from fledge.errors import ConfigError, CorruptError
from fledge.net.json_document import JsonObject, parse_object
from fledge.oci.manifest import (
    CONFIG_TYPES,
    INDEX_TYPES,
    Descriptor,
    normalize_platform,
    parse_digest,
    parse_platform,
)
from fledge.tree.digest import Digest
from fledge.tree.names import printable

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
ARTIFACT_TYPE = "application/vnd.fledge.artifact.v1"
CHUNK_TYPE = "application/vnd.fledge.chunk.v1+zstd"
FILE_TYPE = "application/vnd.fledge.file.v1"
PLUGIN_TYPE = "application/vnd.volant.plugin.manifest.v1+json"

EMPTY = b"{}"
EMPTY_CONFIG = Descriptor("application/vnd.oci.empty.v1+json", Digest.of(EMPTY), len(EMPTY))
"""The config of an artifact that has none (image-spec, manifest.md, "Guidance for an Empty
Descriptor")."""

TITLE = "org.opencontainers.image.title"
PREFIX = "com.github.volantvm.fledge."
"""What the annotations that only fledge reads begin with."""

PUSHED = f"{PREFIX}pushed"

MIN_CHUNK = 1 << 20
MAX_CHUNK = 1 << 23
"""Bytes of a chunk. Several are in memory at the same time."""
MAX_CHUNKS = 8192
"""Chunks of one artifact: its manifest must have at most 4 MiB."""
MAX_SIZE = MAX_CHUNK * MAX_CHUNKS
"""Bytes of one artifact."""
MAX_ARTIFACTS = 64
"""Artifacts of one index."""
MAX_NAME = 200
"""Bytes of the name of an artifact's file; the names of its documents are longer."""


class Chunk(msgspec.Struct, frozen=True):
    """A part of an artifact."""

    offset: int
    digest: Digest
    """Of the part itself."""
    blob: Descriptor
    """The compressed part, as the registry has it."""


class RemoteArtifact(msgspec.Struct, frozen=True, kw_only=True):
    """An artifact in a registry."""

    name: str
    """The name of its file."""
    digest: Digest
    """The digest of its file."""
    size: int
    """Bytes of its file."""
    kind: str
    """The name of its format: ``ext4``, ``initramfs``."""
    platform: str
    """Empty: not known."""
    config: Descriptor
    """`EMPTY_CONFIG`, or the plugin manifest."""
    whole: Descriptor | None = None
    """The content in one blob; None: it is in chunks."""
    os_features: tuple[str, ...] = ()
    """What a host must have to use that blob. Only known before a push."""
    chunk_size: int = 0
    """Bytes of each part of the file but the last; 0 if it is whole."""
    chunks: tuple[Chunk, ...] = ()
    """In the order of the file, without those that are zeros."""
    about: Mapping[str, str] = {}
    """Further annotations, for people."""
    pushed: int = 0
    """When a build cache got it, in seconds since 1970; 0: it is not in one. What a person pushes
    is the same whenever it is pushed."""

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """All blobs that the manifest names."""
        content = (self.whole,) if self.whole else tuple(each.blob for each in self.chunks)
        return (self.config, *content)

    @property
    def has_plugin_manifest(self) -> bool:
        """Whether the config is a plugin manifest."""
        return self.config.media_type == PLUGIN_TYPE

    def length(self, chunk: Chunk) -> int:
        """Return the bytes of a part."""
        return min(self.chunk_size, self.size - chunk.offset)


def chunk_size(size: int) -> int:
    """Return the size of the chunks of an artifact. The same for all but much larger ones, so that
    an artifact that grows a little has the same chunks.
    """
    fitting = MIN_CHUNK
    while fitting * MAX_CHUNKS < size:
        fitting *= 2
    return fitting


def is_file_name(name: str) -> bool:
    """Return whether an artifact may have that name, in any folder of any machine."""
    # "." begins names that are hidden or stand for folders, "-" an option of a command.
    plain = name.isprintable() and "/" not in name and not name.startswith((".", "-"))
    return plain and 0 < len(name.encode()) <= MAX_NAME


def max_compressed(size: int) -> int:
    """Return the most bytes that a part of that size has compressed (ZSTD_compressBound)."""
    return size + (size >> 8) + 256


def serialize(artifact: RemoteArtifact) -> bytes:
    """Return the manifest of an artifact."""
    if artifact.whole:
        layers = [to_json(artifact.whole, {TITLE: artifact.name})]
    else:
        layers = [
            to_json(
                chunk.blob,
                {f"{PREFIX}offset": str(chunk.offset), f"{PREFIX}digest": str(chunk.digest)},
            )
            for chunk in artifact.chunks
        ]
    own = {
        TITLE: artifact.name,
        f"{PREFIX}digest": str(artifact.digest),
        f"{PREFIX}size": str(artifact.size),
        f"{PREFIX}type": artifact.kind,
    }
    if artifact.chunk_size:
        own[f"{PREFIX}chunk-size"] = str(artifact.chunk_size)
    if artifact.platform:
        own[f"{PREFIX}platform"] = artifact.platform
    if artifact.pushed:
        own[PUSHED] = str(artifact.pushed)
    return dump(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": to_json(artifact.config),
            # A manifest of nothing but zeros has a layer as well: registries want one.
            "layers": layers or [to_json(EMPTY_CONFIG)],
            "annotations": {**artifact.about, **own},
        }
    )


def serialize_index(artifacts: Mapping[Descriptor, RemoteArtifact]) -> bytes:
    """Return the index of several artifacts, by the descriptors of their manifests."""
    manifests = []
    for manifest, artifact in artifacts.items():
        entry = to_json(manifest)
        platform = parse_platform(artifact.platform)
        parts: dict[str, Any] = {"os": platform.os, "architecture": platform.architecture}
        if platform.variant:
            parts["variant"] = platform.variant
        if artifact.os_features:
            parts["os.features"] = artifact.os_features
        annotations = {TITLE: artifact.name, f"{PREFIX}type": artifact.kind}
        entry |= {
            "artifactType": ARTIFACT_TYPE,
            "platform": parts,
            "annotations": annotations,
        }
        manifests.append(entry)
    return dump(
        {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "manifests": manifests,
        }
    )


def parse(raw: bytes, where: str) -> RemoteArtifact | tuple[Descriptor, ...]:
    """Parse a manifest, or an index into the descriptors of its manifests.

    Raises `CorruptError` if it is malformed or that of something else.
    """
    document = parse_object(raw, where)
    media_type = document.text("mediaType", "")
    if media_type in INDEX_TYPES or document.has("manifests"):
        listed = document.members("manifests", MAX_ARTIFACTS)
        # Not all registries and tools keep the type in an index.
        own = [each for each in listed if each.text("artifactType", "") in ("", ARTIFACT_TYPE)]
        return tuple(map(_listed, own))
    artifact_type = document.text("artifactType", "")
    if artifact_type != ARTIFACT_TYPE:
        raise _foreign(document, artifact_type, where)
    annotations = document.member("annotations")
    size = _number(annotations, f"{PREFIX}size", MAX_SIZE)
    layers = document.members("layers", MAX_CHUNKS)
    artifact = RemoteArtifact(
        name=_file_name(annotations),
        digest=parse_digest(annotations.text(f"{PREFIX}digest"), where),
        size=size,
        kind=annotations.text(f"{PREFIX}type", ""),
        platform=_platform(annotations),
        config=descriptor(document.member("config")),
        pushed=_number(annotations, PUSHED, 1 << 40) if annotations.has(PUSHED) else 0,
    )
    if len(layers) == 1 and not annotations.has(f"{PREFIX}chunk-size"):
        whole = descriptor(layers[0])
        if whole.digest != artifact.digest or whole.size != size:
            raise CorruptError(f"{where}: the content has another digest or size than it says")
        return msgspec.structs.replace(artifact, whole=whole)
    length = _number(annotations, f"{PREFIX}chunk-size", MAX_CHUNK)
    if length & (length - 1) or length < 4096:
        raise annotations.wrong(f"{PREFIX}chunk-size", "is not a size of chunks")
    if [descriptor(each) for each in layers] == [EMPTY_CONFIG]:
        layers = []
    chunks = tuple(_chunk(each) for each in layers)
    end = -1
    for chunk in chunks:
        if chunk.offset <= end or chunk.offset % length or chunk.offset >= size:
            raise CorruptError(f"{where}: the chunks are not in order, or not of this file")
        if chunk.blob.size > max_compressed(length):
            raise CorruptError(f"{where}: a chunk is larger than it can be")
        end = chunk.offset
    return msgspec.structs.replace(artifact, chunk_size=length, chunks=chunks)


def descriptor(document: JsonObject) -> Descriptor:
    """Parse a descriptor: media type, digest and size. Raises `CorruptError`."""
    return Descriptor(
        document.text("mediaType"),
        parse_digest(document.text("digest"), document.where),
        document.natural("size"),
    )


def to_json(blob: Descriptor, annotations: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return a descriptor as it is in a document (image-spec, descriptor.md)."""
    found = {"mediaType": blob.media_type, "digest": str(blob.digest), "size": blob.size}
    return {**found, "annotations": annotations} if annotations else found


def dump(document: Mapping[str, Any]) -> bytes:
    """Return a document as JSON, the same bytes for the same content."""
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def _listed(document: JsonObject) -> Descriptor:
    found = descriptor(document)
    if not document.has("platform"):
        return found
    platform = document.member("platform")
    parts = (platform.text(key, "") for key in ("os", "architecture", "variant"))
    return msgspec.structs.replace(found, platform=normalize_platform(*parts))


def _platform(annotations: JsonObject) -> str:
    """Parse a platform; empty if it is not known."""
    text = annotations.text(f"{PREFIX}platform", "")
    try:
        return str(parse_platform(text)) if text else ""
    except ConfigError as error:
        raise annotations.wrong(f"{PREFIX}platform", f"{text[:100]!r} is not one") from error


def _chunk(document: JsonObject) -> Chunk:
    if document.text("mediaType") != CHUNK_TYPE:
        raise document.wrong("mediaType", f"is not {CHUNK_TYPE}")
    annotations = document.member("annotations")
    offset = _number(annotations, f"{PREFIX}offset", MAX_SIZE)
    digest = parse_digest(annotations.text(f"{PREFIX}digest"), document.where)
    return Chunk(offset, digest, descriptor(document))


def _number(annotations: JsonObject, key: str, most: int) -> int:
    """Parse a number in an annotation, which is always text."""
    text = annotations.text(key)
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) <= most):
        raise annotations.wrong(key, f"is not a whole number up to {most}")
    return int(text)


def _file_name(annotations: JsonObject) -> str:
    """Parse a name that becomes that of a file on this machine."""
    name = annotations.text(TITLE)
    if not is_file_name(name):
        raise annotations.wrong(TITLE, f"{name[:100]!r} is not the name of a file")
    return name


def _foreign(document: JsonObject, artifact_type: str, where: str) -> CorruptError:
    config = document.member("config").text("mediaType", "")
    if not artifact_type and config in CONFIG_TYPES:
        return CorruptError(
            f"{where}: is a container image, and not an artifact of fledge",
            "To build an artifact of it, name it in [source] image.",
        )
    shown = printable((artifact_type or config)[:100])
    return CorruptError(
        f"{where}: is not an artifact of fledge but {shown!r}",
        "Check the name; fledge push makes what fledge pull reads.",
    )
