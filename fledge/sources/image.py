"""The image source: applies the layers of an image to the tree and adds its config as a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from fledge.oci import layers
from fledge.oci.image import Image as OpenedImage
from fledge.oci.image import ImagePin
from fledge.oci.pins import open_pinned
from fledge.oci.reference import (
    DockerArchive,
    Name,
    OciArchive,
    OciLayout,
    Reference,
    default_name,
    relative,
)
from fledge.oci.transports import open_image
from fledge.report import counted
from fledge.sources import paths
from fledge.sources.inputs import Input
from fledge.sources.source import Assembly, KeyedBy, LockSection, Need, Source
from fledge.tree import File
from fledge.tree.digest import Digest

LOCAL = (OciLayout, OciArchive, DockerArchive)
"""The references to files of this machine."""


class Image(Source, frozen=True):
    """An OCI or Docker image, from a registry, a daemon, a layout or an archive."""

    role: ClassVar[str] = "image"
    section: ClassVar[LockSection | None] = LockSection(ImagePin, keyed_by=KeyedBy.PLATFORM)

    reference: Annotated[
        Reference,
        Meta(
            description="The image: a name, or a location after docker://, docker-daemon:, oci:,"
            " oci-archive: or docker-archive:.",
            examples=["nginx:alpine"],
            extra={"variables": True},
        ),
    ] = msgspec.field(name="image")

    def artifact_name(self) -> str:
        """Return the last part of the name: ``nginx`` for ``nginx:alpine``."""
        return default_name(self.reference)

    def pinned_name(self, folder: Path) -> str:
        """Return the full reference. Paths below ``folder`` are relative."""
        return str(relative(self.reference, folder))

    def resolve(self, assembly: Assembly, old: ImagePin | None) -> tuple[ImagePin, str]:
        """Read manifest and config, but no layers, and return their digests."""
        image = open_image(self.reference, assembly.platform, assembly.session)
        if image.note:
            assembly.session.reporter.note(image.note)
        pin = ImagePin(
            image.manifest,
            Digest.of(image.config),
            tuple(layer.diff_id for layer in image.layers),
        )
        # A daemon has no manifests. Keep the digest that a registry gave for the same image.
        if old is not None and pin.manifest is None and old.config == pin.config:
            pin = old
        return pin, f"{image.uri}, {assembly.platform}"

    def recorded_pin(self, record: Input, platform: str) -> tuple[str, ImagePin]:
        """Return the platform, and the digests of config, manifest and layers."""
        facts = msgspec.convert(record.facts, _Facts)
        manifest = Digest.parse(facts.manifest) if facts.manifest else None
        return platform, ImagePin(
            manifest, record.digest, tuple(Digest.parse(each) for each in facts.diff_ids)
        )

    def needs(self, assembly: Assembly, pin: ImagePin | None) -> Sequence[Need]:
        """Name the image and how many of its layers the cache lacks.

        Those of a layout or an archive are on this machine.
        """
        if isinstance(self.reference, LOCAL):
            return ()
        image = self._open(assembly, pin)
        claim = assembly.session.cache.claim
        lacking = [layer for layer in image.layers if claim(layer.diff_id) is None]
        if not lacking:
            return ()
        sizes = [layer.size for layer in lacking if layer.size is not None]
        size = sum(sizes) if len(sizes) == len(lacking) else None
        note = f"{len(lacking)} of {counted(len(image.layers), 'layer')}"
        return (Need(self.role, image.uri, size, note),)

    def _open(self, assembly: Assembly, pin: ImagePin | None) -> OpenedImage:
        """Open the pinned image; the one that the reference names now if ``pin`` is None."""
        platform, session = assembly.platform, assembly.session
        if pin is None:
            return open_image(self.reference, platform, session)
        trusted = assembly.trusts_pins
        return open_pinned(self.reference, pin, platform, session, trusted=trusted)

    def lay(self, assembly: Assembly, pin: ImagePin | None) -> str:
        """Apply the layers to the tree, and add the config at `paths.IMAGE_CONFIG`."""
        session = assembly.session
        image = self._open(assembly, pin)
        if image.manifest:
            session.reporter.detail(f"manifest {image.manifest}")
        apply(image, assembly)
        assembly.inputs.append(self._input(image, assembly))
        return f"{image.uri}, {counted(len(image.layers), 'layer')}"

    def check(self, assembly: Assembly, pin: ImagePin | None) -> str | None:
        """Apply the layers of a layout or archive. Registries and daemons are not asked."""
        if isinstance(self.reference, LOCAL):
            return super().check(assembly, pin)
        assembly.has_image = True
        return None

    def _input(self, image: OpenedImage, assembly: Assembly) -> Input:
        facts: dict[str, object] = {
            "platform": str(assembly.platform),
            "diff_ids": [str(layer.diff_id) for layer in image.layers],
        }
        if image.manifest:
            facts["manifest"] = str(image.manifest)
        uri = self.pinned_name(assembly.folder)
        if isinstance(self.reference, Name):
            # The name does not say where the image came from. Only a registry has manifests.
            uri = f"docker://{uri}" if image.manifest else f"docker-daemon:{uri}"
        return Input(self.role, uri, Digest.of(image.config), facts)


def apply(image: OpenedImage, assembly: Assembly) -> None:
    """Apply the layers of an image to the tree, and add its config at `paths.IMAGE_CONFIG`."""
    reporter, tree = assembly.session.reporter, assembly.tree
    reporter.detail(f"config {Digest.of(image.config)}")
    if image.note:
        reporter.note(image.note)
    layers.unpack(image, tree, assembly.session, assembly.verification)
    tree.add(paths.IMAGE_CONFIG, File(mode=0o644, mtime_ns=tree.mtime_ns, content=image.config))
    assembly.has_image = True


class _Facts(msgspec.Struct):
    """The facts that provenance records about an image."""

    diff_ids: list[str]
    manifest: str | None = None
