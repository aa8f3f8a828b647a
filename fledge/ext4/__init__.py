"""ext4 images from a tree, without privileges.

fledge writes them itself. With ``builder = "mkfs"`` e2fsprogs do: the same plan gives both
their size, their journal, their UUID and their count of inodes, so that one can check the other.
"""

from __future__ import annotations

import os
from pathlib import Path

from fledge.ext4 import mkfs, writer
from fledge.ext4.plan import LOST_AND_FOUND_PATH, plan
from fledge.ext4.structures import BLOCK_SIZE
from fledge.host.output import Digest
from fledge.project.config import Filesystem
from fledge.tree import NANOSECONDS, Directory, Tree
from fledge.tree.limits import check_fits


def check(filesystem: Filesystem) -> None:
    """Raise `HostError` if this machine lacks what the image takes."""
    if filesystem.builder == "mkfs":
        mkfs.check()


def write(
    tree: Tree,
    path: Path,
    filesystem: Filesystem,
    epoch: int,
    digest: Digest | None = None,
) -> None:
    """Make the file at ``path`` an ext4 image of the tree, which gets a /lost+found.

    ``epoch``, in seconds, is when the filesystem says it was made. The same tree,
    ``filesystem`` and ``epoch`` give the same bytes, with ``builder = "mkfs"`` if e2fsprogs
    are the same. ``digest`` gets all of them.

    Raises `CorruptError`, with the path, for what ext4 cannot hold; `FledgeError` if a content
    cannot be read or a tool fails; `HostError` without e2fsprogs; `OSError` if the disk refuses.
    """
    lost_and_found = Directory(mode=0o700, mtime_ns=epoch * NANOSECONDS)
    tree.root.children.setdefault(LOST_AND_FOUND_PATH, lost_and_found)
    check_fits(tree)
    planned = plan(tree, filesystem.size_buffer_mb, epoch)
    if filesystem.builder == "mkfs":
        mkfs.write(tree, planned, path, epoch)
        if digest:
            digest.update_file(path)
    else:
        writer.write(planned, path, epoch, digest)
    if filesystem.preallocate:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, planned.geometry.blocks * BLOCK_SIZE)
