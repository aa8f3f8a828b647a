"""Opens images in an OCI image layout (OCI image-spec, image-layout.md)."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fledge.errors import ConfigError, CorruptError, unreadable, unreadable_argument
from fledge.net.json_document import MAX_DOCUMENT_SIZE
from fledge.oci.choice import choose_image
from fledge.oci.image import Image
from fledge.oci.manifest import (
    Descriptor,
    Index,
    Platform,
    find_manifest,
    make_image,
    parse_manifest,
)
from fledge.tree.content import Span, read_content
from fledge.tree.digest import Digest
from fledge.tree.regular import problem_of

DIGEST = re.compile(r"(?:^|@)sha256:([0-9a-f]{64})$")

FindFile = Callable[[str], Span | None]
"""Finds a file of a layout by its path, such as ``blobs/sha256/HEX``; None if it is missing."""


def open_image(folder: Path, tag: str | None, platform: Platform) -> Image:
    """Open the image that ``tag`` chooses in a layout; if it is None, the only image.

    An image is chosen by its ``org.opencontainers.image.ref.name`` or ``io.containerd.image.name``
    (``docker.io/library/app:v1``, shortened as for Docker), by the digest of its manifest or index,
    or by its place in index.json, from ``@0`` on, as in skopeo.

    Raises `ConfigError` if there is no such layout or image, `CorruptError` if the layout is
    damaged or malformed.
    """
    try:
        mode = folder.stat().st_mode
    except OSError as error:
        raise unreadable_argument(folder, error) from error
    if not stat.S_ISDIR(mode):
        raise ConfigError(
            f"{folder} is not a folder, and so not an OCI layout",
            "If it is a tar file, write oci-archive:FILE or docker-archive:FILE.",
        )
    return open_layout(partial(_find_in_folder, folder), f"oci:{folder}", tag, platform)


def open_layout(find: FindFile, uri: str, tag: str | None, platform: Platform) -> Image:
    """Open an image as `open_image` does, but find the layout's files with ``find``.

    ``uri`` names the layout in messages.
    """
    if find("oci-layout") is None or (index := find("index.json")) is None:
        raise ConfigError(
            f"{uri}: is not an OCI layout: it lacks oci-layout or index.json",
            "`skopeo copy docker://NAME oci:FOLDER` and `buildah push` make one.",
        )
    parsed = parse_manifest(read_document(index, uri), f"{uri}: index.json")
    if not isinstance(parsed, Index):
        raise CorruptError(f"{uri}: index.json is not an index")
    read = partial(_read_blob, find, uri)
    chosen = _by_digest(find, tag) or choose_image(parsed, tag, platform, uri, read)
    manifest = find_manifest(chosen, platform, uri, read)
    uri = f"{uri}{f':{tag}' if tag else ''}@{manifest.digest}"
    blobs = [partial(_find_blob, find, uri, layer) for layer in manifest.layers]
    return make_image(
        uri, read(manifest.config), blobs, platform, manifest.digest, manifest.platform
    )


def read_document(span: Span, where: str) -> bytes:
    """Read a JSON document into memory; ``where`` names it in messages.

    Raises `CorruptError` if it is larger than `MAX_DOCUMENT_SIZE`.
    """
    if span.size > MAX_DOCUMENT_SIZE:
        raise CorruptError(f"{where}: has a document of {span.size} bytes, which is too large")
    return b"".join(read_content(span))


def _by_digest(find: FindFile, tag: str | None) -> Index | None:
    """Return an index of the manifest whose digest the tag is or ends with; else None."""
    named = DIGEST.search(tag or "")
    found = find(f"blobs/sha256/{named[1]}") if named else None
    if named is None or found is None:
        return None
    return Index((Descriptor("", Digest(named[1]), found.size),))


def _find_blob(find: FindFile, uri: str, descriptor: Descriptor) -> Span:
    """Find a blob and check its size against its descriptor."""
    digest = descriptor.digest
    found = find(f"blobs/sha256/{digest.hex}")
    if found is None:
        raise CorruptError(f"{uri}: lacks the blob {digest}", "Make the layout again.")
    if found.size != descriptor.size:
        raise CorruptError(
            f"{uri}: the blob {digest} has {found.size} bytes, not {descriptor.size}",
            "Make the layout again.",
        )
    return Span(found.path, found.offset, found.size, digest)


def _read_blob(find: FindFile, uri: str, descriptor: Descriptor) -> bytes:
    found = _find_blob(find, uri, descriptor)
    raw = read_document(Span(found.path, found.offset, found.size), uri)
    if Digest.of(raw) != descriptor.digest:
        raise CorruptError(
            f"{uri}: the blob {descriptor.digest} has another digest",
            "Make the layout again.",
        )
    return raw


def _find_in_folder(folder: Path, name: str) -> Span | None:
    # Symlinks are followed: the folder is the user's own, and digests are verified.
    path = folder / name
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unreadable(path, error) from error
    if problem := problem_of(status):
        raise CorruptError(f"{path} is {problem}, not a regular file", "Make the layout again.")
    return Span(path, 0, status.st_size)
