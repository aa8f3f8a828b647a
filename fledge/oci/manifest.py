"""Parses and checks the untrusted JSON documents that describe an image.

These are the index and the manifest (OCI image-spec, image-index.md and manifest.md, or Docker
image manifest version 2, schema 2, which differs only in its media types) and the parts of the
config (config.md) that fledge needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from platform import machine

import msgspec

from fledge.errors import ConfigError, CorruptError, MalformedError
from fledge.net.json_document import JsonObject, parse_object
from fledge.oci.image import Image, Layer
from fledge.tree.content import Span
from fledge.tree.digest import Digest
from fledge.tree.names import printable

MAX_NESTING = 8
"""Maximum depth of nested indexes."""

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
"""From the kernel's name of a machine (uname(2)) to Go's GOARCH, where they differ."""
DEFAULT_VARIANTS = {"amd64": "v1", "arm": "v7", "arm64": "v8"}
"""The variant of a platform that does not name one."""


class Platform(msgspec.Struct, frozen=True):
    """A platform that an image runs on, in Go's terms (config.md: os, architecture, variant)."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        variant = f"/{self.variant}" if self.variant else ""
        return f"{self.os}/{self.architecture}{variant}"

    def variant_level(self) -> tuple[int, str]:
        """Return the variant as (number, name): (8, "") for ``v8``, (0, variant) for any other.

        A platform with a higher number also runs images for lower numbers.
        """
        variant = self.variant or DEFAULT_VARIANTS.get(self.architecture, "")
        number = re.fullmatch(r"v([0-9]{1,4})", variant)
        return (int(number[1]), "") if number else (0, variant)

    def runs(self, image: Platform) -> bool:
        """Return whether this platform runs images for the platform ``image``."""
        number, name = self.variant_level()
        image_number, image_name = image.variant_level()
        return (self.os, self.architecture, name) == (
            image.os,
            image.architecture,
            image_name,
        ) and image_number <= number


class Descriptor(msgspec.Struct, frozen=True):
    """The digest, size and type of a blob (OCI image-spec, descriptor.md)."""

    media_type: str
    digest: Digest
    size: int
    """Bytes."""
    platform: Platform | None = None
    """The image's platform, which only an index may give. None if it does not."""
    tag: str | None = None
    """The annotation ``org.opencontainers.image.ref.name``, which only the index of a layout
    has. None if there is none."""


class Manifest(msgspec.Struct, frozen=True):
    """The manifest of an image for one platform (OCI image-spec, manifest.md)."""

    digest: Digest
    """The digest of the manifest itself."""
    config: Descriptor
    layers: tuple[Descriptor, ...]
    """Lowest first."""


class Index(msgspec.Struct, frozen=True):
    """A list of manifests or further indexes (OCI image-spec, image-index.md)."""

    manifests: tuple[Descriptor, ...]


class ImageConfig(msgspec.Struct, frozen=True):
    """The parts of an image's config that fledge needs (OCI image-spec, config.md)."""

    platform: Platform
    diff_ids: tuple[Digest, ...]
    """The digest of each uncompressed layer, lowest first."""


def parse_platform(text: str) -> Platform:
    """Parse ``linux/ARCHITECTURE[/VARIANT]``, the value of ``--platform``.

    The architecture may be Go's name or the kernel's. Raises `ConfigError`.
    """
    os, _, rest = text.lower().partition("/")
    name = f"{os}/{MACHINES.get(rest, rest)}"
    if not PLATFORM.fullmatch(name):
        raise ConfigError(
            f"{printable(text)!r} is not a platform that fledge builds for",
            "Write linux/ARCHITECTURE or linux/ARCHITECTURE/VARIANT, such as linux/arm64.",
        )
    return Platform(*name.split("/"))


def host_platform() -> Platform:
    """Return the platform of this machine, with Linux as its operating system."""
    return parse_platform(f"linux/{machine()}")


def parse_digest(text: str, where: str) -> Digest:
    """Parse the ``sha256:HEX`` of a descriptor; ``where`` names the document in messages.

    Raises `CorruptError` for any other algorithm and for malformed digests.
    """
    if text.startswith("sha512:"):
        raise CorruptError(
            f"{where}: a sha512 digest, which fledge does not verify",
            "Store the image with sha256 digests, as most tools do.",
        )
    try:
        return Digest.parse(text)
    except MalformedError as error:
        raise CorruptError(f"{where}: {error}") from error


def parse_manifest(raw: bytes, where: str) -> Manifest | Index:
    """Parse a manifest or an index; ``where`` names it in messages.

    Raises `CorruptError` for any other document.
    """
    document = parse_object(raw, where)
    media_type = document.text("mediaType", "")
    if document.has("schemaVersion") and document.natural("schemaVersion") == 1:
        raise CorruptError(
            f"{where}: a manifest of schema version 1, which fledge does not read",
            "Docker deprecated it in 2019; push the image again with a current tool.",
        )
    # Otherwise one digest could stand for two images (GHSA-77vh-xpmg-72qh).
    if document.has("manifests") and (document.has("layers") or document.has("config")):
        raise CorruptError(f"{where}: is both a manifest and an index")
    if media_type in INDEX_TYPES or (not media_type and document.has("manifests")):
        return Index(tuple(_descriptor(each) for each in document.members("manifests")))
    if media_type and media_type not in MANIFEST_TYPES:
        raise _not_an_image(where, media_type)
    config = _descriptor(document.member("config"))
    if config.media_type not in CONFIG_TYPES:
        raise _not_an_image(where, config.media_type)
    layers = tuple(_descriptor(each) for each in document.members("layers"))
    for layer in layers:
        if not LAYER_TYPE.fullmatch(layer.media_type):
            raise _not_an_image(where, layer.media_type)
    return Manifest(Digest.of(raw), config, layers)


def resolve_manifest(
    raw: bytes, platform: Platform, where: str, read: Callable[[Descriptor], bytes]
) -> Manifest:
    """Return the manifest in ``raw``, or the one for a platform that the index in it leads to.

    ``read`` returns a document whose digest it has verified. Raises `ConfigError` if there is no
    image for the platform, and the errors of `parse_manifest` and ``read``.
    """
    document = parse_manifest(raw, where)
    for _ in range(MAX_NESTING):
        if isinstance(document, Manifest):
            return document
        chosen = choose_manifest(document.manifests, platform, where)
        document = parse_manifest(read(chosen), f"{where} ({chosen.digest})")
    raise CorruptError(f"{where}: more than {MAX_NESTING} nested indexes")


def choose_manifest(manifests: Sequence[Descriptor], platform: Platform, where: str) -> Descriptor:
    """Return the manifest with the highest variant that a platform runs.

    If no descriptor has a suitable platform but exactly one has none, return that one: its config
    will tell. Raises `ConfigError` that lists the platforms there are.
    """
    # Reversed, so that the first of equal variants wins, as image-index.md requires.
    suitable = {
        each.platform.variant_level(): each
        for each in reversed(manifests)
        if each.platform and platform.runs(each.platform)
    }
    if suitable:
        return suitable[max(suitable)]
    unknown = [each for each in manifests if each.platform is None]
    if len(unknown) == 1:
        return unknown[0]
    # BuildKit lists attestations in an index as images for "unknown/unknown".
    names = {str(each.platform) for each in manifests if each.platform} - {"unknown/unknown"}
    offer = ", ".join(sorted(names))
    raise ConfigError(
        f"{where}: has no image for {platform}",
        f"Choose one of these with --platform: {offer}" if offer else "",
    )


def parse_config(raw: bytes, where: str) -> ImageConfig:
    """Parse an image's config; ``where`` names it in messages. Raises `CorruptError`."""
    document = parse_object(raw, where)
    rootfs = document.member("rootfs")
    if rootfs.text("type") != "layers":
        raise rootfs.wrong("type", "is not 'layers'")
    diff_ids = [parse_digest(text, rootfs.where) for text in rootfs.texts("diff_ids")]
    return ImageConfig(_platform(document), tuple(diff_ids))


def make_image(
    uri: str,
    config: bytes,
    blobs: Sequence[Callable[[], Span]],
    platform: Platform,
    manifest: Digest | None = None,
    sizes: Sequence[int] = (),
) -> Image:
    """Make an `Image` of a config and the functions that fetch the layers' blobs, lowest first.

    ``manifest`` is the digest of its manifest, if there is one; ``sizes`` are those of the blobs,
    if they are known. Raises `CorruptError` if the
    config is malformed or has another number of layers, `ConfigError` if the image does not run
    on ``platform``.
    """
    parsed = parse_config(config, f"{uri}: config")
    check_platform(parsed.platform, platform, uri)
    if len(blobs) != len(parsed.diff_ids):
        raise CorruptError(
            f"{uri}: has {len(blobs)} layers, but {len(parsed.diff_ids)} diff_ids in its config"
        )
    layers = tuple(
        Layer(diff_id, blob, sizes[number] if sizes else None)
        for number, (diff_id, blob) in enumerate(zip(parsed.diff_ids, blobs, strict=True))
    )
    return Image(uri, config, layers, manifest)


def check_platform(image: Platform, wanted: Platform, where: str) -> None:
    """Raise `ConfigError` if images for the platform ``image`` do not run on ``wanted``."""
    # Many images for arm/v6 do not give a variant in their config.
    assumed = image if image.variant else Platform(image.os, image.architecture, wanted.variant)
    if not wanted.runs(assumed):
        raise ConfigError(
            f"{where}: is an image for {image}, not for {wanted}",
            f"Build it with --platform {image}, or choose another image.",
        )


def _descriptor(document: JsonObject) -> Descriptor:
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


def _platform(document: JsonObject) -> Platform:
    return Platform(
        document.text("os"), document.text("architecture"), document.text("variant", "")
    )


def _not_an_image(where: str, media_type: str) -> CorruptError:
    return CorruptError(f"{where}: is not a container image but {media_type[:100]!r}")
