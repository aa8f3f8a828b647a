"""xfs and btrfs images from a tree: made by mkfs, filled by the kernel through a loop mount.

This takes root. The bytes are not reproducible: the kernel writes clocks and generation
numbers of its own into them, and mkfs a random UUID.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fledge.errors import FledgeError, HostError
from fledge.host import folder
from fledge.host import programs as tools
from fledge.project.config import Filesystem
from fledge.tree import File, Tree
from fledge.tree.content import content_size
from fledge.tree.limits import check_fits
from fledge.tree.space import MIB, free_space

NODE_SIZE = 4096
"""Bytes that count for one node's metadata: an inode, its name, its xattrs."""

OVERHEAD = {"xfs": 80 * MIB, "btrfs": 128 * MIB}
"""Bytes that an empty filesystem needs for itself, xfs mostly for its log."""

MIN_SIZE = 320 * MIB
"""mkfs.xfs refuses less than 300 MiB."""


def check(filesystem: Filesystem) -> None:
    """Raise `HostError` if this user or machine cannot make that filesystem."""
    if os.geteuid() != 0:
        raise HostError(
            f"an image with {filesystem.type} needs root, for a loop mount",
            'Run fledge as root, or use type = "ext4", which needs no privileges.',
        )
    for tool in (f"mkfs.{filesystem.type}", "mount", "umount", "losetup", "sync"):
        tools.find(tool)


def write(tree: Tree, path: Path, filesystem: Filesystem) -> None:
    """Make the file at ``path`` an image of the tree, as ``filesystem`` asks for.

    ``size_buffer_mb`` is what is free at least. Whatever happens nothing stays mounted.
    Raises `HostError` without root, a tool, a loop device or the kernel's support;
    `CorruptError` for what the filesystem cannot hold; `FledgeError` if a tool fails;
    `OSError` if the disk does.
    """
    check(filesystem)
    check_fits(tree)
    size = _size(tree, filesystem)
    with TemporaryDirectory(prefix=".fledge-", dir=path.parent) as work_folder:
        work = Path(work_folder)
        (work / "image").symlink_to(Path("..", path.name))
        (work / "mount").mkdir(mode=0o700)
        os.truncate(path, 0)
        os.truncate(path, size)
        if filesystem.preallocate:
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        # -K: discard nothing, for it would undo the preallocation.
        tools.run(f"mkfs.{filesystem.type}", "-q", "-K", "image", folder=work)
        with _mounted(work, filesystem.type) as root:
            folder.populate(tree, root)
            folder.set_metadata(tree, root)
            # Only this tells of a write that failed, on a full disk below the image.
            tools.run("sync", "--file-system", ".", folder=f"/proc/self/fd/{root}")


def _size(tree: Tree, filesystem: Filesystem) -> int:
    nodes = {node for _, node in tree.walk()}
    content = sum(content_size(node.content) for node in nodes if isinstance(node, File))
    buffer = free_space(filesystem.size_buffer_mb, content)
    needed = content + len(nodes) * NODE_SIZE + buffer
    # Both keep a part of the whole for their trees and reserves.
    return max(MIN_SIZE, OVERHEAD[filesystem.type] + needed + needed // 10) // MIB * MIB + MIB


@contextmanager
def _mounted(work: Path, filesystem_type: str) -> Iterator[int]:
    """The root of ``work/image``, open, while it is mounted.

    The mount point is detached at once, so that the open root alone keeps the mount alive:
    however this process ends, the kernel then unmounts it and frees the loop device.
    """
    try:
        _mount(work, filesystem_type)
        root = os.open(work / "mount", os.O_RDONLY | os.O_DIRECTORY)
    finally:
        if os.path.ismount(work / "mount"):
            tools.run("umount", "--lazy", "mount", folder=work)
    try:
        yield root
    finally:
        os.close(root)


def _mount(work: Path, filesystem_type: str) -> None:
    options = "loop,nosuid,nodev,noexec"
    try:
        tools.run("mount", "-t", filesystem_type, "-o", options, "image", "mount", folder=work)
    except FledgeError as error:
        try:
            tools.run("losetup", "--find", folder=work)
        except FledgeError:
            raise HostError(
                f"there is no free loop device: {error.message}",
                "Release one with losetup --detach, or load the kernel module loop. In a"
                " container, give it /dev/loop-control and the loop devices.",
            ) from None
        if filesystem_type not in Path("/proc/filesystems").read_text().split():
            raise HostError(
                f"this kernel has no {filesystem_type}: {error.message}",
                f'Load its module with modprobe {filesystem_type}, or use type = "ext4".',
            ) from None
        raise
