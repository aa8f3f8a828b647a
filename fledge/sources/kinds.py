"""Lists the kinds of sources in the order in which a build lays them over the tree."""

from fledge.sources import agent, busybox, init, mappings
from fledge.sources.dockerfile import Dockerfile
from fledge.sources.image import Image
from fledge.sources.source import Kind, Presence

IMAGES = Kind(
    table="source",
    description="The image that all other files are added to, or the Dockerfile to build it from.",
    variants=(Image, Dockerfile),
    presence={"initramfs": Presence.IF_GIVEN, "oci_rootfs": Presence.REQUIRED},
)
"""The sources that are an image. There is at most one in a config."""

IMAGE_ROLES = frozenset(variant.role for variant in IMAGES.variants)

SOURCES: list[Kind] = [IMAGES, busybox.KIND, init.KIND, agent.KIND, mappings.KIND]
"""All kinds of sources. To add one, write a module like these and add its `Kind` here."""
