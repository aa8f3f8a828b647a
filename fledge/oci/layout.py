"""OCI image layouts (OCI image-spec, image-layout.md): in a folder, or in anything with files."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fledge.errors import ConfigError, CorruptError, unreadable
from fledge.oci import document
from fledge.oci.image import Image
from fledge.oci.manifest import (
    Descriptor,
    Index,
    Platform,
    choose,
    find_manifest,
    make_image,
    parse_manifest,
)
from fledge.tree.content import Span, read_content

Files = Callable[[str], Span | None]
"""Finds a file of a layout by its path, such as ``blobs/sha256/HEX``; None: there is none."""


def open_image(folder: Path, tag: str | None, platform: Platform) -> Image:
    """The image of a layout with that tag, or without one the only image.

    Raises `ConfigError` if there is no such layout or image, `CorruptError` if the layout is
    not what it claims to be.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder", "Name the folder of an OCI layout.")
    return open_layout(partial(_file, folder), f"oci:{folder}", tag, platform)


def open_layout(files: Files, uri: str, tag: str | None, platform: Platform) -> Image:
    """As `open_image`, with the files wherever they are; ``uri`` names the layout."""
    if files("oci-layout") is None or (index := files("index.json")) is None:
        raise ConfigError(
            f"{uri}: is no OCI layout, for it lacks oci-layout or index.json",
            "`skopeo copy docker://NAME oci:FOLDER` and `buildah push` make one.",
        )
    parsed = parse_manifest(read_document(index, uri), f"{uri}: index.json")
    if not isinstance(parsed, Index):
        raise CorruptError(f"{uri}: index.json is no index")
    chosen = choose(_tagged(parsed, tag, uri), platform, uri)
    read = partial(_read_blob, files, uri)
    manifest = find_manifest(read(chosen), platform, uri, read)
    uri = f"{uri}{f':{tag}' if tag else ''}@sha256:{manifest.sha256}"
    blobs = [partial(_blob, files, uri, layer) for layer in manifest.layers]
    return make_image(uri, read(manifest.config), blobs, platform, manifest.sha256)


def read_document(span: Span, where: str) -> bytes:
    """A whole file in memory. Raises `CorruptError` if it is too large for a document."""
    if span.size > document.MAX_SIZE:
        raise CorruptError(f"{where}: has a document of {span.size} bytes, which is too large")
    return b"".join(read_content(span))


def _tagged(index: Index, tag: str | None, uri: str) -> list[Descriptor]:
    """What a tag stands for; more than one of a tag are for several platforms."""
    tags = {each.tag for each in index.manifests}
    if tag is None and len(tags) > 1:
        problem = "holds more than one image"
    elif tag is not None and tag not in tags:
        problem = f"has no image {tag!r}"
    elif not tags:
        raise ConfigError(f"{uri}: holds no image")
    else:
        return [each for each in index.manifests if tag in (None, each.tag)]
    offer = ", ".join(f"{uri}:{each}" for each in sorted(filter(None, tags)))
    raise ConfigError(f"{uri}: {problem}", f"It has {offer}." if offer else "Leave out the tag.")


def _blob(files: Files, uri: str, descriptor: Descriptor) -> Span:
    """Where a blob is; it has the size that its descriptor promises."""
    digest = descriptor.sha256
    found = files(f"blobs/sha256/{digest}")
    if found is None:
        raise CorruptError(f"{uri}: lacks the blob sha256:{digest}", "Make the layout again.")
    if found.size != descriptor.size:
        raise CorruptError(
            f"{uri}: the blob sha256:{digest} has {found.size} bytes, not {descriptor.size}",
            "Make the layout again.",
        )
    return Span(found.path, found.offset, found.size, digest)


def _read_blob(files: Files, uri: str, descriptor: Descriptor) -> bytes:
    found = _blob(files, uri, descriptor)
    raw = read_document(Span(found.path, found.offset, found.size), uri)
    if hashlib.sha256(raw).hexdigest() != descriptor.sha256:
        raise CorruptError(
            f"{uri}: the blob sha256:{descriptor.sha256} has another digest",
            "Make the layout again.",
        )
    return raw


def _file(folder: Path, name: str) -> Span | None:
    # Symlinks are followed: it is the user's own folder, and a blob's digest is verified.
    path = folder / name
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise CorruptError(f"{path} is not a regular file")
    return Span(path, 0, status.st_size)
