"""What squashfs holds of a tree."""

from __future__ import annotations

from pathlib import Path

from fledge.disks.squashfs.format import Squashfs
from fledge.tree import NANOSECONDS, Symlink, Tree
from fledge.tree.limits import MAX_ID
from tests.support import disks
from tests.support.mounted import Listing

MAX_TIME = ((1 << 32) - 1) * NANOSECONDS


def fit(tree: Tree) -> Tree:
    """Change a tree to what squashfs holds of it: whole seconds, and names of some attributes."""
    for _, node in tree.walk():
        node.mtime_ns = fit_time(node.mtime_ns)
        node.uid, node.gid = min(node.uid, MAX_ID), min(node.gid, MAX_ID)
        node.xattrs = {
            name: value
            for name, value in node.xattrs.items()
            if name.startswith((b"user.", b"trusted.", b"security."))
        }
        if isinstance(node, Symlink):
            node.mode = 0o777
    return tree


def fit_listing(listing: Listing) -> Listing:
    """Return what squashfs holds of entries whose attributes it takes."""
    return {
        path: entry._replace(mtime_ns=fit_time(entry.mtime_ns)) for path, entry in listing.items()
    }


def fit_time(time_ns: int) -> int:
    """Return the whole second that squashfs has for a time."""
    return min(max(time_ns // NANOSECONDS * NANOSECONDS, 0), MAX_TIME)


def write(tree: Tree, path: Path, options: Squashfs | None = None) -> Path:
    """Write a tree as squashfs; quickly, unless the options say otherwise."""
    disks.write(tree, path, options or Squashfs(compression_level=1))
    return path
