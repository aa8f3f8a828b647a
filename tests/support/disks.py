"""Writes trees as a build does."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from fledge.ext4.format import Ext4
from fledge.formats import FORMATS, Format
from fledge.host.destination import Destination
from fledge.host.files import replacing_together
from fledge.host.output import Hasher
from fledge.host.settings import Settings
from fledge.report import Reporter
from fledge.tree import NANOSECONDS, Directory, Tree
from fledge.tree.digest import Digest


def write(tree: Tree, path: Path, options: Format) -> Digest:
    """Write a tree in a format, and return the digest that the build would record."""
    with replacing_together(path) as [new], closing(Hasher()) as hasher:
        options.write(tree, Destination(new, hasher, Reporter(), Settings.from_environment()))
        return hasher.digest()


def write_ext4(tree: Tree, path: Path, options: Ext4, epoch: int) -> None:
    """Write an ext4 image made at ``epoch``; the tree gets the image's /lost+found.

    So what is found in the image can be compared with the tree.
    """
    lost_and_found = Directory(mode=0o700, mtime_ns=epoch * NANOSECONDS)
    tree.root.children.setdefault(b"lost+found", lost_and_found)
    timed = Tree(epoch * NANOSECONDS)
    timed.root = tree.root
    write(timed, path, options)


def _read_only_keys(kind: type[Format]) -> str | None:
    """Return what makes a filesystem read-only in fledge.toml; None: nothing does."""
    if kind.strategy == "oci_rootfs" and kind().read_only:
        return ""
    return "read_only = true\n" if kind is Ext4 else None


READ_ONLY = {each.name: keys for each in FORMATS if (keys := _read_only_keys(each)) is not None}
"""The filesystems that can be sealed, and the keys for that."""
