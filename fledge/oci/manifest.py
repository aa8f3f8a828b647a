"""The JSON documents that describe an image, parsed and checked.

Index and manifest (OCI image-spec, image-index.md and manifest.md; Docker image manifest
version 2, schema 2, which says the same with other media types), and what fledge needs of
the config (config.md). They come from elsewhere: nothing in them is taken on trust.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from platform import machine

import msgspec

from fledge.errors import ConfigError, CorruptError
from fledge.oci.document import Document, parse, parse_digest
from fledge.oci.image import Image, Layer
from fledge.tree.content import Span
from fledge.tree.names import printable

MAX_NESTING = 8
"""How many indexes may lead to one another."""

INDEX_TYPES = frozenset(
    {
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    }
)
MANIFEST_TYPES = frozenset(
    {
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    }
)
CONFIG_TYPES = frozenset(
    {
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    }
)
LAYER_TYPE = re.compile(
    r"application/vnd\.(?:oci\.image\.layer\.(?:nondistributable\.)?v1\.tar"
    r"|docker\.image\.rootfs\.(?:foreign\.)?diff\.tar)(?:[.+](?:gzip|zstd))?"
)
REF_NAME = "org.opencontainers.image.ref.name"

PLATFORM = re.compile(r"linux/[a-z0-9]+(?:/[a-z0-9]+)?")
MACHINES = {
    "x86_64": "amd64",
    "i386": "386",
    "i686": "386",
    "aarch64": "arm64",
    "armv6l": "arm/v6",
    "armv7l": "arm/v7",
    "loongarch64": "loong64",
}
"""What the kernel calls a machine, where Go (and so an image) calls it something else."""
VARIANTS = {"amd64": "v1", "arm": "v7", "arm64": "v8"}
"""What no variant means."""


class Platform(msgspec.Struct, frozen=True):
    """What an image runs on, in Go's words (config.md: os, architecture, variant)."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        variant = f"/{self.variant}" if self.variant else ""
        return f"{self.os}/{self.architecture}{variant}"

    def level(self) -> tuple[int, str]:
        """The variant to compare by: of two that are numbers, the greater one runs both."""
        variant = self.variant or VARIANTS.get(self.architecture, "")
        number = re.fullmatch(r"v([0-9]{1,4})", variant)
        return (int(number[1]), "") if number else (0, variant)

    def runs(self, other: Platform) -> bool:
        """Whether an image for that other platform is one for this."""
        number, name = self.level()
        its_number, its_name = other.level()
        return (self.os, self.architecture, name) == (
            other.os,
            other.architecture,
            its_name,
        ) and its_number <= number


class Descriptor(msgspec.Struct, frozen=True):
    """Names a blob (OCI image-spec, descriptor.md)."""

    media_type: str
    sha256: str
    """Its digest, hex."""
    size: int
    """Its length in bytes."""
    platform: Platform | None = None
    """What it is for; only in an index, and not in every one."""
    tag: str | None = None
    """The annotation ``org.opencontainers.image.ref.name``; only in the index of a layout."""


class Manifest(msgspec.Struct, frozen=True):
    """One image on one platform."""

    sha256: str
    """The digest of the document itself, hex."""
    config: Descriptor
    layers: tuple[Descriptor, ...]
    """Lowest first."""


class Index(msgspec.Struct, frozen=True):
    """Images to choose from."""

    manifests: tuple[Descriptor, ...]


class Config(msgspec.Struct, frozen=True):
    """What fledge needs of an image's config."""

    platform: Platform
    diff_ids: tuple[str, ...]
    """SHA-256 (hex) of each uncompressed layer, lowest first."""


def parse_platform(text: str) -> Platform:
    """What ``--platform`` names: ``linux/ARCHITECTURE[/VARIANT]``. Raises `ConfigError`."""
    os, _, rest = text.lower().partition("/")
    name = f"{os}/{MACHINES.get(rest, rest)}"
    if not PLATFORM.fullmatch(name):
        raise ConfigError(
            f"{printable(text)!r} is no platform that fledge builds for",
            "Write linux/ARCHITECTURE or linux/ARCHITECTURE/VARIANT, such as linux/arm64.",
        )
    return Platform(*name.split("/"))


def host_platform() -> Platform:
    """Linux on the architecture of this machine."""
    return parse_platform(f"linux/{machine()}")


def parse_manifest(raw: bytes, where: str) -> Manifest | Index:
    """A manifest or an index. Raises `CorruptError` for anything else; ``where`` names it."""
    document = parse(raw, where)
    media_type = document.text("mediaType", "")
    if document.has("schemaVersion") and document.natural("schemaVersion") == 1:
        raise CorruptError(
            f"{where}: a manifest of schema version 1, which fledge does not read",
            "Docker gave it up in 2019; push the image again with a current tool.",
        )
    # One digest must not mean two images (GHSA-77vh-xpmg-72qh).
    if document.has("manifests") and (document.has("layers") or document.has("config")):
        raise CorruptError(f"{where}: is both a manifest and an index")
    if media_type in INDEX_TYPES or (not media_type and document.has("manifests")):
        return Index(tuple(_descriptor(each) for each in document.members("manifests")))
    if media_type and media_type not in MANIFEST_TYPES:
        raise _no_image(where, media_type)
    config = _descriptor(document.member("config"))
    if config.media_type not in CONFIG_TYPES:
        raise _no_image(where, config.media_type)
    layers = tuple(_descriptor(each) for each in document.members("layers"))
    for layer in layers:
        if not LAYER_TYPE.fullmatch(layer.media_type):
            raise _no_image(where, layer.media_type)
    return Manifest(hashlib.sha256(raw).hexdigest(), config, layers)


def find_manifest(
    raw: bytes, platform: Platform, where: str, read: Callable[[Descriptor], bytes]
) -> Manifest:
    """The manifest that a document is, or leads to on that platform.

    ``read`` gets a document and has verified its digest. Raises `ConfigError` if there is none
    for the platform, and what `parse_manifest` and ``read`` raise.
    """
    document = parse_manifest(raw, where)
    for _ in range(MAX_NESTING):
        if isinstance(document, Manifest):
            return document
        chosen = choose(document.manifests, platform, where)
        document = parse_manifest(read(chosen), f"{where} (sha256:{chosen.sha256})")
    raise CorruptError(f"{where}: more than {MAX_NESTING} indexes that lead to one another")


def choose(manifests: Sequence[Descriptor], platform: Platform, where: str) -> Descriptor:
    """The best of several for a platform: the one of the highest variant that it runs.

    One without a platform says what it is for in its config. Raises `ConfigError` that lists
    what there is.
    """
    # Of equals the first, as image-index.md asks.
    suitable = {
        each.platform.level(): each
        for each in reversed(manifests)
        if each.platform and platform.runs(each.platform)
    }
    if suitable:
        return suitable[max(suitable)]
    unknown = [each for each in manifests if each.platform is None]
    if len(unknown) == 1:
        return unknown[0]
    # BuildKit puts attestations into an index as images for "unknown/unknown".
    names = {str(each.platform) for each in manifests if each.platform} - {"unknown/unknown"}
    offer = ", ".join(sorted(names))
    raise ConfigError(
        f"{where}: has no image for {platform}",
        f"Choose one that it has with --platform: {offer}" if offer else "",
    )


def parse_config(raw: bytes, where: str) -> Config:
    """The part of a config that fledge needs. Raises `CorruptError`."""
    document = parse(raw, where)
    rootfs = document.member("rootfs")
    if rootfs.text("type") != "layers":
        raise rootfs.wrong("type", "is not 'layers'")
    diff_ids = [parse_digest(text, rootfs.where) for text in rootfs.texts("diff_ids")]
    return Config(_platform(document), tuple(diff_ids))


def make_image(
    uri: str,
    config: bytes,
    blobs: Sequence[Callable[[], Span]],
    platform: Platform,
    manifest: str | None = None,
) -> Image:
    """The image of that config, whose layers' blobs are to be had by these functions.

    Raises `CorruptError` if the two do not fit together, `ConfigError` if the image is for
    another platform.
    """
    parsed = parse_config(config, f"{uri}: config")
    require_platform(platform, parsed.platform, uri)
    if len(blobs) != len(parsed.diff_ids):
        raise CorruptError(
            f"{uri}: has {len(blobs)} layers, but {len(parsed.diff_ids)} diff_ids in its config"
        )
    layers = tuple(Layer(*each) for each in zip(parsed.diff_ids, blobs, strict=True))
    return Image(uri, config, layers, manifest)


def require_platform(platform: Platform, its: Platform, where: str) -> None:
    """Raise `ConfigError` if an image for ``its`` platform is none for the one that is wanted."""
    # Many an image for arm/v6 does not say so in its config.
    assumed = its if its.variant else Platform(its.os, its.architecture, platform.variant)
    if not platform.runs(assumed):
        raise ConfigError(
            f"{where}: is an image for {its}, not for {platform}",
            f"Build it with --platform {its}, or choose another image.",
        )


def _descriptor(document: Document) -> Descriptor:
    tag = None
    if document.has("annotations"):
        tag = document.member("annotations").text(REF_NAME, "") or None
    return Descriptor(
        document.text("mediaType"),
        parse_digest(document.text("digest"), document.where),
        document.natural("size"),
        _platform(document.member("platform")) if document.has("platform") else None,
        tag,
    )


def _platform(document: Document) -> Platform:
    return Platform(
        document.text("os"), document.text("architecture"), document.text("variant", "")
    )


def _no_image(where: str, media_type: str) -> CorruptError:
    return CorruptError(f"{where}: is not a container image, but has {media_type[:100]!r}")
