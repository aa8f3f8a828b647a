"""Recognizes what fledge has written into a folder of the user: locks, artifacts, documents."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from fledge.tree.names import HASH_TREE_SUFFIX
from fledge.tree.regular import read_regular

LOCK_SUFFIX = ".lock"
LOCK_START = "# What the names and URLs in "
"""What every lock begins with."""

PROVENANCE_SUFFIX = ".provenance.json"
SIGNATURES_SUFFIX = ".provenance.dsse.json"
MANIFEST_SUFFIX = ".manifest.json"
ROOT_HASH_SIGNATURE_SUFFIX = ".roothash.p7s"
SPDX_SUFFIX = ".spdx.json"
CYCLONEDX_SUFFIX = ".cdx.json"

DOCUMENT_SUFFIXES = (
    PROVENANCE_SUFFIX,
    SIGNATURES_SUFFIX,
    MANIFEST_SUFFIX,
    HASH_TREE_SUFFIX,
    ROOT_HASH_SIGNATURE_SUFFIX,
    SPDX_SUFFIX,
    CYCLONEDX_SUFFIX,
)
"""The suffixes of all documents beside an artifact, after its whole name."""

BUILD_TYPE = "https://github.com/volantvm/fledge/blob/main/README.md#provenance"
"""What every provenance has in it, near its beginning."""

READ_SIZE = 1 << 14
"""Bytes of a document that are searched for `BUILD_TYPE`."""


def among(folder: Path, names: Collection[str]) -> set[str]:
    """Return which of the names in a folder are of files that fledge has written.

    Those are a lock; and a provenance, with the artifact and the other documents beside it.
    """
    written = {
        name
        for name in names
        if name.endswith(LOCK_SUFFIX) and _has(folder / name, LOCK_START, len(LOCK_START))
    }
    for name in names:
        if name.endswith(PROVENANCE_SUFFIX) and _has(folder / name, BUILD_TYPE, READ_SIZE):
            artifact = name.removesuffix(PROVENANCE_SUFFIX)
            written |= {artifact, *(artifact + suffix for suffix in DOCUMENT_SUFFIXES)}
    return written.intersection(names)


def _has(path: Path, text: str, size: int) -> bool:
    """Return whether the first ``size`` bytes of a file have a text in them."""
    try:
        return text.encode() in read_regular(path, size)
    except OSError:
        return False
