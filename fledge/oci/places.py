"""From a reference to its image, wherever that is."""

from __future__ import annotations

from fledge.net.fetch import Fetcher
from fledge.oci import archive, layout, registry
from fledge.oci.image import Image
from fledge.oci.manifest import Platform
from fledge.oci.reference import (
    DockerArchive,
    InDaemon,
    InRegistry,
    OciArchive,
    OciLayout,
    Reference,
)


def open_image(reference: Reference, platform: Platform, fetcher: Fetcher) -> Image:
    """The image; its layers are only fetched when they are asked for.

    A bare name is looked for in the local Docker daemon, then in its registry. Raises
    `FledgeError` if it is nowhere, or not what it claims to be.
    """
    cache, reporter = fetcher.cache, fetcher.reporter
    if isinstance(reference, OciLayout):
        return layout.open_image(reference.path, reference.tag, platform)
    if isinstance(reference, OciArchive):
        return archive.open_oci_archive(reference.path, reference.tag, platform, cache, reporter)
    if isinstance(reference, DockerArchive):
        return archive.open_docker_archive(reference.path, reference.tag, platform, cache, reporter)
    if isinstance(reference, InRegistry):
        return registry.open_image(reference.name, platform, fetcher)
    # The Docker client takes longer to import than all the rest.
    from fledge.oci import daemon  # noqa: PLC0415

    if isinstance(reference, InDaemon):
        return daemon.open_image(reference.name, platform, cache, reporter)
    found = daemon.find_image(reference, platform, cache, reporter)
    return found or registry.open_image(reference, platform, fetcher)
