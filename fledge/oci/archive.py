"""Images in a tar file: an OCI layout (oci-archive), or what ``docker save`` writes.

The file is read where it is: a layer is a span of it. A compressed one is inflated into the
cache first. No name in it is ever a path on this machine.

The docker-archive format: github.com/moby/docker-image-spec, spec/v1.2.md, "Combined Image
JSON + Filesystem Changeset Format".
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec

from fledge.errors import ConfigError, CorruptError, unreadable
from fledge.oci import layout, reference, tar
from fledge.oci.document import Document, parse_list
from fledge.oci.image import Image
from fledge.oci.layers import inflated
from fledge.oci.manifest import Platform, make_image
from fledge.report import Reporter, human_size
from fledge.store.cache import Cache
from fledge.tree import File, Symlink
from fledge.tree.compression import GZIP_MAGIC, ZSTD_MAGIC
from fledge.tree.content import Blob, Span, read_content
from fledge.tree.names import printable

MAX_SIZE = 1 << 38
"""Bytes in an archive that is written to the cache (256 GiB); one of zeros deflates well."""
MAX_ENTRIES = 1 << 16
"""Entries in an archive; an image has a handful a layer."""
MAX_LINKS = 8
"""How many links may lead to one another."""


class Files(msgspec.Struct):
    """What an archive holds, by normalised name; the last entry of a name counts."""

    uri: str
    spans: dict[str, Span] = msgspec.field(default_factory=dict)
    links: dict[str, str] = msgspec.field(default_factory=dict)
    """Symlinks and hard links: older ``docker save`` writes a layer that it has twice once."""

    def find(self, name: str) -> Span | None:
        name = posixpath.normpath(name)
        for _ in range(MAX_LINKS):
            if name not in self.links:
                return self.spans.get(name)
            name = self.links[name]
        raise CorruptError(f"{self.uri}: {printable(name)} is a link that leads too far")

    def get(self, name: str) -> Span:
        if (span := self.find(name)) is None:
            raise CorruptError(
                f"{self.uri}: lacks {name}, which its manifest.json names", "Save the image again."
            )
        return span


def open_oci_archive(
    path: Path, tag: str | None, platform: Platform, cache: Cache, reporter: Reporter
) -> Image:
    """The image of that tag in a tar of an OCI layout, or without a tag the only image.

    Raises `ConfigError` if there is no such file or image, `CorruptError` if the archive is
    not what it claims to be.
    """
    uri = f"oci-archive:{path}"
    files = read_files(_plain(path, uri, cache, reporter), uri)
    return layout.open_layout(files.find, uri, tag, platform)


def open_docker_archive(
    path: Path, tag: str | None, platform: Platform, cache: Cache, reporter: Reporter
) -> Image:
    """As `open_oci_archive`, for what ``docker save`` writes."""
    uri = f"docker-archive:{path}"
    return open_saved(read_files(_plain(path, uri, cache, reporter), uri), tag, platform)


def open_saved(files: Files, tag: str | None, platform: Platform) -> Image:
    """An image among the files of ``docker save``. Raises as `open_docker_archive`."""
    uri = files.uri
    if (span := files.find("manifest.json")) is None:
        raise ConfigError(
            f"{uri}: has no manifest.json, so `docker save` did not write it",
            "Write oci-archive:FILE if it holds an OCI layout.",
        )
    listed = parse_list(layout.read_document(span, uri), f"{uri}: manifest.json")
    image = _tagged(listed, tag, uri)
    uri += f":{tag}" if tag else ""
    config = layout.read_document(files.get(image.text("Config")), uri)
    blobs = [partial(files.get, name) for name in image.texts("Layers")]
    return make_image(uri, config, blobs, platform)


def read_files(archive: Span, uri: str) -> Files:
    """Where the files of an uncompressed tar are. Raises `CorruptError`."""
    files = Files(uri)
    try:
        for number, (path, node) in enumerate(tar.read(archive)):
            if number == MAX_ENTRIES:
                raise CorruptError(f"it has more than {MAX_ENTRIES} entries")
            name = posixpath.normpath(path.decode("utf-8", "surrogateescape"))
            files.spans.pop(name, None)
            files.links.pop(name, None)
            if isinstance(node, File) and isinstance(node.content, Span):
                files.spans[name] = node.content
            elif isinstance(node, Symlink):
                target = node.target.decode("utf-8", "surrogateescape")
                files.links[name] = posixpath.normpath(
                    posixpath.join(posixpath.dirname(name), target)
                )
            elif isinstance(node, tar.HardLink):
                target = node.target.decode("utf-8", "surrogateescape")
                files.links[name] = posixpath.normpath(target)
    except CorruptError as error:
        raise CorruptError(f"{uri}: {error.message}", "Save the image again.") from None
    return files


def store(pieces: Iterator[bytes], label: str, cache: Cache, reporter: Reporter) -> Blob:
    """Put an archive into the cache. Raises `CorruptError` if it is too large."""
    with (
        reporter.transfer(label) as transfer,
        cache.partial(None, lambda: None) as unfinished,
    ):
        transfer.restart(0, None)
        for piece in pieces:
            if unfinished.size + len(piece) > MAX_SIZE:
                raise CorruptError(f"{label} is larger than {human_size(MAX_SIZE)}")
            unfinished.write(piece)
            transfer.advance(len(piece))
        return cache.add(unfinished)


def _plain(path: Path, uri: str, cache: Cache, reporter: Reporter) -> Span:
    """The archive, uncompressed."""
    if not path.is_file():
        raise ConfigError(f"{path} is not a file", "Name a tar file that holds an image.")
    try:
        archive = Span(path, 0, path.stat().st_size)
        with path.open("rb") as file:
            compressed = file.read(4).startswith((GZIP_MAGIC, ZSTD_MAGIC))
    except OSError as error:
        raise unreadable(path, error) from error
    if not compressed:
        return archive
    try:
        return store(inflated(read_content(archive)), path.name, cache, reporter)
    except CorruptError as error:
        raise CorruptError(f"{uri}: {error.message}", "Save the image again.") from None


def _tagged(listed: list[Document], tag: str | None, uri: str) -> Document:
    """The image of that tag, or the only one."""
    tags = [each.texts("RepoTags") if each.has("RepoTags") else [] for each in listed]
    wanted = _full_name(tag) if tag else ""
    chosen = [
        image
        for image, its in zip(listed, tags, strict=True)
        if not tag or wanted in map(_full_name, its)
    ]
    if len(chosen) == 1:
        return chosen[0]
    problem = f"has no image {printable(tag)!r}" if tag else f"holds {len(listed)} images"
    offer = ", ".join(sorted(f"{uri}:{each}" for its in tags for each in its))
    raise ConfigError(f"{uri}: {problem}", f"It has {offer}." if offer else "")


def _full_name(tag: str) -> str:
    """``nginx`` and ``docker.io/library/nginx:latest`` are the same."""
    try:
        return str(reference.parse(tag, Path()))
    except ConfigError:
        return tag
