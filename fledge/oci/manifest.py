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
MAX_OFFERED = 20
"""Maximum images that a hint lists."""

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
DEFAULTED_CONFIG_TYPES = frozenset(
    {"", "application/octet-stream", "application/json", "text/html"}
)
"""What registries and old clients made of a config's type. Docker takes these for images too:
whether one is tells the config itself."""
DEFAULTED_LAYER_TYPES = frozenset({"", "application/octet-stream"})
"""The same for layers, whose content fledge goes by in any case."""
LAYER_TYPE = re.compile(
    r"application/vnd\.(?:oci\.image\.layer\.(?:nondistributable\.)?v1\.tar"
    r"|docker\.image\.rootfs\.(?:foreign\.)?diff\.tar)(?:[.+](?:gzip|zstd|xz|bzip2))?"
)
REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"

PLATFORM = re.compile(r"linux/[a-z0-9]+(?:/[a-z0-9]+)?")
ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "i386": "386",
    "i686": "386",
    "aarch64": "arm64",
    "armel": "arm/v6",
    "armv6l": "arm/v6",
    "armhf": "arm/v7",
    "armv7l": "arm/v7",
    "loongarch64": "loong64",
}
"""From other names of an architecture, such as the kernel's (uname(2)) and Debian's, to Go's
GOARCH and the variant."""
GO_ARCHITECTURE = re.compile(
    "386|amd64|arm(?:64)?|loong64|mips(?:64)?(?:le)?|ppc64(?:le)?|riscv64|s390x"
)
"""The architectures of Linux in Go, which ``--platform`` takes without ``linux/``."""
DEFAULT_VARIANTS = {"amd64": "v1", "arm": "v7", "arm64": "v8"}
"""The variant of a platform that does not name one."""


class NotAnImageError(CorruptError):
    """A manifest is that of an artifact other than a container image."""


class Platform(msgspec.Struct, frozen=True):
    """A platform that an image runs on, in Go's terms (config.md: os, architecture, variant).

    `normalize_platform` makes one of the fields of a document.
    """

    os: str
    architecture: str
    """Empty: not known, which stands for every architecture."""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    def variant_level(self) -> tuple[int, str]:
        """Return the variant as (number, name): (8, "") for ``v8``, (0, variant) for any other.

        A platform with a higher number also runs images for lower numbers.
        """
        variant = self.variant or DEFAULT_VARIANTS.get(self.architecture, "")
        number = re.fullmatch(r"v([0-9]{1,4})", variant)
        return (int(number[1]), "") if number else (0, variant)

    def runs(self, image: Platform) -> bool:
        """Return whether this platform runs images for the platform ``image``."""
        if self == ANY_ARCHITECTURE:
            return image.os == self.os
        number, name = self.variant_level()
        image_number, image_name = image.variant_level()
        return (self.os, self.architecture, name) == (
            image.os,
            image.architecture,
            image_name,
        ) and image_number <= number


ANY_ARCHITECTURE = Platform("linux", "")
"""The platform to open an image for if its digest has been chosen for the right one before."""


class Descriptor(msgspec.Struct, frozen=True):
    """The digest, size and type of a blob (OCI image-spec, descriptor.md)."""

    media_type: str
    digest: Digest
    size: int
    """Bytes."""
    platform: Platform | None = None
    """The image's platform, which only an index may give. None if it names no architecture."""
    tag: str | None = None
    """The annotation ``org.opencontainers.image.ref.name``, which only the index of a layout
    has. None if there is none."""
    name: str | None = None
    """The annotation ``io.containerd.image.name``, which Docker and containerd add in a layout:
    a whole name. None if there is none."""


class Manifest(msgspec.Struct, frozen=True):
    """The manifest of an image for one platform (OCI image-spec, manifest.md)."""

    digest: Digest
    """The digest of the manifest itself."""
    config: Descriptor
    layers: tuple[Descriptor, ...]
    """Lowest first."""
    platform: Platform | None = None
    """The platform for which an index lists it. None if no index does."""


class Index(msgspec.Struct, frozen=True):
    """A list of manifests or further indexes (OCI image-spec, image-index.md)."""

    manifests: tuple[Descriptor, ...]


class ImageConfig(msgspec.Struct, frozen=True):
    """The parts of an image's config that fledge needs (OCI image-spec, config.md)."""

    platform: Platform
    diff_ids: tuple[Digest, ...]
    """The digest of each uncompressed layer, lowest first."""


def normalize_platform(os: str, architecture: str, variant: str = "") -> Platform:
    """Make a platform of the fields of a document, in Go's spelling.

    Tools write ``Linux``, ``x86_64`` and the variant ``7`` too, and leave out what they do not
    know. An image without an operating system is for Linux, as in containerd.
    """
    architecture, variant = architecture.lower(), variant.lower()
    architecture, _, implied = ARCHITECTURES.get(architecture, architecture).partition("/")
    variant = variant or implied
    if architecture in ("arm", "arm64") and re.fullmatch("[0-9]", variant):
        variant = f"v{variant}"
    return Platform(os.lower() or "linux", architecture, variant)


def parse_platform(text: str) -> Platform:
    """Parse ``[linux/]ARCHITECTURE[/VARIANT]``, the value of ``--platform``.

    The architecture may have any name that `normalize_platform` knows. Raises `ConfigError`.
    """
    first, *rest = text.lower().split("/")
    if first in ARCHITECTURES or GO_ARCHITECTURE.fullmatch(first):
        first, rest = "linux", [first, *rest]
    platform = normalize_platform(first, *rest) if len(rest) in (1, 2) and all(rest) else None
    if platform is None or not PLATFORM.fullmatch(str(platform)):
        raise ConfigError(
            f"{printable(text)!r} is not a platform that fledge builds for",
            "Write linux/ARCHITECTURE or linux/ARCHITECTURE/VARIANT, such as linux/arm64.",
        )
    return platform


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
        return Index(_descriptors(document, "manifests"))
    if media_type and media_type not in MANIFEST_TYPES:
        raise _not_an_image(where, media_type)
    config = _descriptor(document.member("config"))
    if config.media_type not in CONFIG_TYPES:
        artifact_type = document.text("artifactType", "")
        if artifact_type or config.media_type not in DEFAULTED_CONFIG_TYPES:
            raise _not_an_image(where, artifact_type or config.media_type)
    layers = _descriptors(document, "layers")
    for layer in layers:
        known = layer.media_type in DEFAULTED_LAYER_TYPES or LAYER_TYPE.fullmatch(layer.media_type)
        if not known:
            raise _not_an_image(where, layer.media_type)
    return Manifest(Digest.of(raw), config, layers)


def resolve_manifest(
    raw: bytes, platform: Platform, where: str, read: Callable[[Descriptor], bytes]
) -> Manifest:
    """Return the manifest in ``raw``, or the one for a platform that the index in it leads to.

    ``read`` returns a document whose digest it has verified. Raises `ConfigError` if there is no
    image for the platform, and the errors of `parse_manifest` and ``read``.
    """
    return find_manifest(parse_manifest(raw, where), platform, where, read)


def find_manifest(
    document: Manifest | Index, platform: Platform, where: str, read: Callable[[Descriptor], bytes]
) -> Manifest:
    """Do what `resolve_manifest` does, for a parsed document."""
    listed = None
    for _ in range(MAX_NESTING):
        if isinstance(document, Manifest):
            return msgspec.structs.replace(document, platform=listed)
        chosen = choose_manifest(document.manifests, platform, where)
        document = parse_manifest(read(chosen), f"{where} ({chosen.digest})")
        listed = chosen.platform
    raise CorruptError(f"{where}: more than {MAX_NESTING} nested indexes")


def best_manifests(manifests: Sequence[Descriptor], platform: Platform) -> list[Descriptor]:
    """Return the manifests with the highest variant that a platform runs, in their order."""
    suitable = [
        (each.platform.variant_level(), each)
        for each in manifests
        if each.platform and platform.runs(each.platform)
    ]
    best = max((level for level, _ in suitable), default=None)
    return [each for level, each in suitable if level == best]


def choose_manifest(manifests: Sequence[Descriptor], platform: Platform, where: str) -> Descriptor:
    """Return the manifest with the highest variant that a platform runs.

    If no descriptor has a suitable platform but exactly one has none, return that one: its config
    will tell. Raises `ConfigError` that lists the platforms there are.
    """
    # The first wins, as image-index.md requires.
    if suitable := best_manifests(manifests, platform):
        return suitable[0]
    unknown = [each for each in manifests if each.platform is None]
    if len(unknown) == 1:
        return unknown[0]
    if unknown:
        digests = ", ".join(str(each.digest) for each in unknown[:MAX_OFFERED])
        raise ConfigError(
            f"{where}: lists no image for {platform}, and {len(unknown)} without a platform",
            f"Choose one by its digest: {digests}",
        )
    # BuildKit lists attestations in an index as images for "unknown/unknown".
    names = {str(each.platform) for each in manifests if each.platform} - {"unknown/unknown"}
    hint = ""
    if names:
        hint = f"fledge builds for Linux, and it has only {', '.join(sorted(names))}."
    if offer := sorted(filter(PLATFORM.fullmatch, names)):
        hint = f"Choose one of these with --platform: {', '.join(offer)}"
    raise ConfigError(f"{where}: has no image for {platform}", hint)


def offered(references: Sequence[str]) -> str:
    """Return the hint that lists the images to choose from; empty if there are none."""
    if not references:
        return ""
    left_out = len(references) - MAX_OFFERED
    more = f" and {left_out} more" if left_out > 0 else ""
    return f"It has {', '.join(references[:MAX_OFFERED])}{more}."


def parse_config(raw: bytes, where: str) -> ImageConfig:
    """Parse an image's config; ``where`` names it in messages. Raises `CorruptError`."""
    document = parse_object(raw, where)
    if not document.has("rootfs"):
        raise NotAnImageError(f"{where}: is not that of a container image: it has no rootfs")
    rootfs = document.member("rootfs")
    if rootfs.text("type", "layers") != "layers":
        raise rootfs.wrong("type", "is not 'layers'")
    texts = rootfs.texts("diff_ids") if rootfs.has("diff_ids") else []
    diff_ids = tuple(parse_digest(text, rootfs.where) for text in texts)
    return ImageConfig(_platform(document), diff_ids)


def make_image(
    uri: str,
    config: bytes,
    blobs: Sequence[Callable[[], Span]],
    platform: Platform,
    manifest: Digest | None = None,
    listed: Platform | None = None,
) -> Image:
    """Make an `Image` of a config and the functions that fetch the layers' blobs, lowest first.

    ``manifest`` is the digest of its manifest, if there is one. ``listed`` is the platform for
    which an index lists it, which counts for more than that in the config: images of other
    platforms are often built with the config of the builder's own.

    Raises `CorruptError` if the config is malformed or has another number of layers, `ConfigError`
    if the image does not run on ``platform``.
    """
    parsed = parse_config(config, f"{uri}: config")
    note = ""
    if listed is None:
        check_platform(parsed.platform, platform, uri)
    elif not _fits(parsed.platform, listed):
        note = (
            f"{uri}: is listed for {listed}, although its config says {parsed.platform};"
            " the list decides"
        )
    if len(blobs) != len(parsed.diff_ids):
        raise CorruptError(
            f"{uri}: has {len(blobs)} layers, but {len(parsed.diff_ids)} diff_ids in its config"
        )
    layers = tuple(Layer(*each) for each in zip(parsed.diff_ids, blobs, strict=True))
    return Image(uri, config, layers, manifest, note)


def assume_platform(image: Platform, wanted: Platform) -> Platform:
    """Return the platform of a config, with what it leaves out taken from the one wanted."""
    # Buildpacks leave out the architecture, many images for arm/v6 the variant.
    return Platform(
        image.os, image.architecture or wanted.architecture, image.variant or wanted.variant
    )


def check_platform(image: Platform, wanted: Platform, where: str) -> None:
    """Raise `ConfigError` if images for the platform ``image`` do not run on ``wanted``."""
    if _fits(image, wanted):
        return
    hint = "fledge builds for Linux; choose another image."
    if PLATFORM.fullmatch(str(image)):
        hint = f"Build it with --platform {image}, or choose another image."
    raise ConfigError(f"{where}: is an image for {image}, not for {wanted}", hint)


def _fits(image: Platform, wanted: Platform) -> bool:
    """Return whether images for the platform ``image``, as a config has it, run on ``wanted``."""
    return wanted.runs(assume_platform(image, wanted))


def _descriptors(document: JsonObject, key: str) -> tuple[Descriptor, ...]:
    # Go writes an empty list as null, or leaves it out: an image FROM scratch has no layers.
    members = document.members(key) if document.has(key) else []
    return tuple(map(_descriptor, members))


def _descriptor(document: JsonObject) -> Descriptor:
    tag = name = None
    if document.has("annotations"):
        annotations = document.member("annotations")
        tag = annotations.text(REF_NAME, "") or None
        name = annotations.text(CONTAINERD_NAME, "") or None
    platform = _platform(document.member("platform")) if document.has("platform") else None
    return Descriptor(
        document.text("mediaType", ""),
        parse_digest(document.text("digest"), document.where),
        document.natural("size"),
        platform if platform and platform.architecture else None,
        tag,
        name,
    )


def _platform(document: JsonObject) -> Platform:
    return normalize_platform(
        document.text("os", ""), document.text("architecture", ""), document.text("variant", "")
    )


def _not_an_image(where: str, media_type: str) -> NotAnImageError:
    return NotAnImageError(f"{where}: is not a container image but {media_type[:100]!r}")
