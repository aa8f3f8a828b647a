"""Lists the kinds of sources in the order in which a build lays them over the tree."""

from fledge.sources import agent, busybox, image, init, mappings
from fledge.sources.source import Kind

SOURCES: list[Kind] = [image.KIND, busybox.KIND, init.KIND, agent.KIND, mappings.KIND]
"""All kinds of sources. To add one, write a module like these and add its `Kind` here."""
