"""Opens images in a tar file: an OCI layout (oci-archive) or the output of ``docker save``.

The archive is not extracted: a layer is a span of the file. A compressed archive is decompressed
into the cache first. Names in an archive are never used as paths on this machine.

The docker-archive format: github.com/moby/docker-image-spec, spec/v1.2.md, "Combined Image
JSON + Filesystem Changeset Format".
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec

from fledge.errors import ConfigError, CorruptError, unreadable_argument
from fledge.net.json_document import JsonObject, parse_list
from fledge.oci import layout, tar
from fledge.oci.image import Image
from fledge.oci.layers import decompress
from fledge.oci.manifest import Platform, make_image, offered
from fledge.oci.reference import full_name
from fledge.report import human_size
from fledge.session import Session
from fledge.tree import File, Symlink
from fledge.tree.budget import Budget
from fledge.tree.compression import MAX_START, find_decompression
from fledge.tree.content import Blob, Span, read_content
from fledge.tree.names import printable
from fledge.tree.regular import read_regular

MAX_ARCHIVE_SIZE = 1 << 38
"""Maximum bytes of an archive in the cache: 256 GiB. It stops a decompression bomb."""
MAX_ENTRIES = 1 << 16
"""Maximum entries in an archive. An image needs only a few for each layer."""
MAX_LINKS = 8
"""Maximum links followed to find a file."""


class ArchiveIndex(msgspec.Struct):
    """The positions of an archive's files, by normalised name; the last entry of a name counts."""

    uri: str
    spans: dict[str, Span] = msgspec.field(default_factory=dict)
    links: dict[str, str] = msgspec.field(default_factory=dict)
    """Targets of symlinks and hard links. Older versions of ``docker save`` write a link for a
    layer that occurs a second time."""

    def find(self, name: str) -> Span | None:
        """Return the file with that name, or None. Raises `CorruptError` for too many links."""
        name = posixpath.normpath(name)
        for _ in range(MAX_LINKS):
            if name not in self.links:
                return self.spans.get(name)
            name = self.links[name]
        raise CorruptError(f"{self.uri}: {printable(name)} is a link that leads too far")

    def get(self, name: str) -> Span:
        """Return the file with that name. Raises `CorruptError` if the archive lacks it."""
        if (span := self.find(name)) is None:
            raise CorruptError(
                f"{self.uri}: lacks {name}, which its manifest.json names", "Save the image again."
            )
        return span


def open_oci_archive(path: Path, tag: str | None, platform: Platform, session: Session) -> Image:
    """Open the image with a tag in a tar of an OCI layout; without a tag (None), the only image.

    Raises `ConfigError` if there is no such file or image, `CorruptError` if the archive is
    damaged or malformed.
    """
    uri = f"oci-archive:{path}"
    files = index_archive(_uncompressed(path, uri, session), uri)
    return layout.open_layout(files.find, uri, tag, platform)


def open_docker_archive(path: Path, tag: str | None, platform: Platform, session: Session) -> Image:
    """Open an image as `open_oci_archive` does, from an archive that ``docker save`` wrote."""
    uri = f"docker-archive:{path}"
    return open_saved(index_archive(_uncompressed(path, uri, session), uri), tag, platform)


def open_built(path: Path, uri: str, platform: Platform) -> Image:
    """Open the only image of an uncompressed archive, of an OCI layout or of ``docker save``.

    Raises the errors of `open_oci_archive`.
    """
    files = index_archive(Span(path, 0, path.stat().st_size), uri)
    if files.find("manifest.json") is None:
        return layout.open_layout(files.find, uri, None, platform)
    return open_saved(files, None, platform)


def open_saved(files: ArchiveIndex, tag: str | None, platform: Platform) -> Image:
    """Open an image in an indexed archive of ``docker save``.

    Raises the errors of `open_docker_archive`.
    """
    uri = files.uri
    if (span := files.find("manifest.json")) is None:
        raise ConfigError(
            f"{uri}: has no manifest.json, so `docker save` did not write it",
            "Write oci-archive:FILE if it is an OCI layout.",
        )
    images = parse_list(layout.read_document(span, uri), f"{uri}: manifest.json")
    image = _find_tag(images, tag, uri)
    uri += f":{tag}" if tag else ""
    config = layout.read_document(files.get(image.text("Config")), uri)
    names = image.texts("Layers") if image.has("Layers") else []  # null in an image FROM scratch
    blobs = [partial(files.get, name) for name in names]
    return make_image(uri, config, blobs, platform)


def index_archive(archive: Span, uri: str) -> ArchiveIndex:
    """Find the files of an uncompressed tar. Raises `CorruptError` if it is not a sound tar."""
    files = ArchiveIndex(uri)
    try:
        for number, (path, node) in enumerate(tar.read(archive, Budget(archive.size))):
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
        raise CorruptError(f"{uri}: {error.message}", "Save the image again.") from error
    return files


def store_archive(
    pieces: Iterator[bytes], label: str, session: Session, size: int | None = None
) -> Blob:
    """Write an archive to the cache. ``label`` names it in messages, ``size`` is about its bytes.

    Raises `CorruptError` if it is larger than `MAX_ARCHIVE_SIZE`.
    """
    with (
        session.reporter.transfer(label) as transfer,
        session.cache.partial(None, lambda: None) as unfinished,
    ):
        transfer.restart(0, size)
        for piece in pieces:
            if unfinished.size + len(piece) > MAX_ARCHIVE_SIZE:
                raise CorruptError(f"{label} is larger than {human_size(MAX_ARCHIVE_SIZE)}")
            unfinished.write(piece)
            transfer.advance(len(piece))
        return session.cache.add(unfinished)


def _uncompressed(path: Path, uri: str, session: Session) -> Span:
    """Return the archive itself, or its decompressed copy in the cache."""
    try:
        compressed = find_decompression(read_regular(path, MAX_START)) is not None
        archive = Span(path, 0, path.stat().st_size)
    except OSError as error:
        failure = unreadable_argument(path, error)
        failure.hint = "Name a tar file that contains an image."
        if path.is_dir():
            failure.hint = "If it is the folder of an OCI layout, write oci:FOLDER."
        raise failure from error
    if not compressed:
        return archive
    try:
        return store_archive(decompress(read_content(archive)), path.name, session)
    except CorruptError as error:
        hint = error.hint or "Save the image again."
        raise CorruptError(f"{uri}: {error.message}", hint) from error


def _find_tag(images: list[JsonObject], tag: str | None, uri: str) -> JsonObject:
    """Return the image with that tag or, for ``@0``, in that place; without a tag the only one."""
    all_tags = [image.texts("RepoTags") if image.has("RepoTags") else [] for image in images]
    wanted = full_name(tag) if tag else ""
    chosen = [
        image
        for number, (image, tags) in enumerate(zip(images, all_tags, strict=True))
        if not tag or tag == f"@{number}" or wanted in map(full_name, tags)
    ]
    if len(chosen) == 1:
        return chosen[0]
    count = f"{len(chosen)} images" if chosen else "no image"
    named = f" {printable(tag)!r}" if tag else ""
    counted = Counter(each for tags in all_tags for each in set(tags))
    offer = [
        f"{uri}:{each}"
        for number, tags in enumerate(all_tags)
        for each in [tag for tag in tags if counted[tag] == 1] or [f"@{number}"]
    ]
    raise ConfigError(f"{uri}: has {count}{named}", offered(offer))
