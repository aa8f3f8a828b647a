"""The manifest of an artifact, as data."""

from __future__ import annotations

import pytest

from fledge.net.json_document import MAX_DOCUMENT_SIZE
from fledge.oci.artifact import (
    CHUNK_TYPE,
    EMPTY_CONFIG,
    MAX_CHUNK,
    MAX_CHUNKS,
    MAX_SIZE,
    MIN_CHUNK,
    Chunk,
    RemoteArtifact,
    chunk_size,
    parse,
    serialize,
)
from fledge.oci.manifest import Descriptor
from fledge.tree.digest import Digest


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, MIN_CHUNK),
        (MIN_CHUNK * MAX_CHUNKS, MIN_CHUNK),
        (MIN_CHUNK * MAX_CHUNKS + 1, 2 * MIN_CHUNK),
        (MAX_SIZE, MAX_CHUNK),
    ],
)
def test_chunk_size(size: int, expected: int) -> None:
    assert chunk_size(size) == expected


@pytest.mark.slow
def test_largest_artifact() -> None:
    """The manifest of an artifact without holes, of the most bytes, is one that registries take."""
    chunks = tuple(
        Chunk(
            number * MAX_CHUNK,
            Digest.of(b"%d" % number),
            Descriptor(CHUNK_TYPE, Digest.of(b"%d" % -number), MAX_CHUNK),
        )
        for number in range(MAX_CHUNKS)
    )
    remote = RemoteArtifact(
        name="x" * 200,
        digest=Digest.of(b""),
        size=MAX_SIZE,
        kind="ext4",
        platform="linux/amd64",
        config=EMPTY_CONFIG,
        chunk_size=MAX_CHUNK,
        chunks=chunks,
    )
    raw = serialize(remote)
    assert len(raw) < MAX_DOCUMENT_SIZE
    assert parse(raw, "largest") == remote
