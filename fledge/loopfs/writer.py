"""Makes an image with mkfs and copies a tree into it through a loop mount."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fledge.errors import FledgeError, HostError
from fledge.host import folder, programs
from fledge.host.settings import Settings
from fledge.tree import File, Tree
from fledge.tree.content import content_size
from fledge.tree.limits import check_fits
from fledge.tree.space import MIB, free_space

NODE_SIZE = 4096
"""Bytes for the metadata of one node: its inode, its name, its extended attributes."""

OVERHEAD = {"xfs": 80 * MIB, "btrfs": 128 * MIB}
"""Bytes of an empty filesystem, by type. xfs needs most of them for its log."""

MIN_SIZE = 320 * MIB
"""Bytes of the smallest image. mkfs.xfs refuses less than 300 MiB."""


def check(filesystem: str, settings: Settings) -> None:
    """Raise `HostError` if this machine or user cannot write ``filesystem``: xfs or btrfs."""
    if os.geteuid() != 0:
        raise HostError(
            f"an image of type {filesystem} needs root, for a loop mount",
            'Run fledge as root, or use type = "ext4", which needs no privileges.',
        )
    for tool in (f"mkfs.{filesystem}", "mount", "umount", "losetup", "sync"):
        programs.find(tool, settings)


def write(
    tree: Tree,
    path: Path,
    filesystem: str,
    *,
    size_buffer_mb: int = 0,
    preallocate: bool = False,
    settings: Settings,
) -> None:
    """Write an image of the tree to the file at ``path``. ``filesystem`` is xfs or btrfs.

    At least ``free_space(size_buffer_mb, …)`` bytes stay free. Nothing stays mounted, even if
    this process is killed. Raises `HostError` if root, a tool, a loop device or a kernel module
    is missing; `CorruptError` if the filesystem cannot store a node; `FledgeError` if a tool
    fails; `OSError` if the image cannot be written.
    """
    check(filesystem, settings)
    check_fits(tree)
    size = _image_size(tree, filesystem, size_buffer_mb)
    with TemporaryDirectory(prefix=".fledge-", dir=path.parent) as work_folder:
        work = Path(work_folder)
        (work / "image").symlink_to(Path("..", path.name))
        (work / "mount").mkdir(mode=0o700)
        os.truncate(path, 0)
        os.truncate(path, size)
        if preallocate:
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        # -K: do not discard blocks, because that would undo the preallocation.
        programs.run(f"mkfs.{filesystem}", "-q", "-K", "image", folder=work, settings=settings)
        with _mounted(work, filesystem, settings) as root:
            folder.populate(tree, root)
            folder.set_metadata(tree, root)
            # Reports writes that failed because the disk below the image is full.
            programs.run(
                "sync", "--file-system", ".", folder=f"/proc/self/fd/{root}", settings=settings
            )


def _image_size(tree: Tree, filesystem: str, size_buffer_mb: int) -> int:
    nodes = {node for _, node in tree.walk()}
    content = sum(content_size(node.content) for node in nodes if isinstance(node, File))
    needed = content + len(nodes) * NODE_SIZE + free_space(size_buffer_mb, content)
    # Both filesystems use a share of their size for trees and reserves.
    return max(MIN_SIZE, OVERHEAD[filesystem] + needed + needed // 10) // MIB * MIB + MIB


@contextmanager
def _mounted(work: Path, filesystem: str, settings: Settings) -> Iterator[int]:
    """Mount ``work/image`` and return a descriptor of its root directory.

    The mount is detached at once, so that only the descriptor keeps it alive. When this process
    ends, for whatever reason, the kernel unmounts the image and frees the loop device.
    """
    try:
        _mount(work, filesystem, settings)
        root = os.open(work / "mount", os.O_RDONLY | os.O_DIRECTORY)
    finally:
        if os.path.ismount(work / "mount"):
            programs.run("umount", "--lazy", "mount", folder=work, settings=settings)
    try:
        yield root
    finally:
        os.close(root)


def _mount(work: Path, filesystem: str, settings: Settings) -> None:
    options = "loop,nosuid,nodev,noexec"
    try:
        arguments = ("-t", filesystem, "-o", options, "image", "mount")
        programs.run("mount", *arguments, folder=work, settings=settings)
    except FledgeError as error:
        try:
            programs.run("losetup", "--find", folder=work, settings=settings)
        except FledgeError:
            raise HostError(
                f"no loop device is free: {error.message}",
                "Release one with losetup --detach, or load the kernel module loop. In a"
                " container, give it /dev/loop-control and the loop devices.",
            ) from error
        if filesystem not in Path("/proc/filesystems").read_text().split():
            raise HostError(
                f"this kernel does not support {filesystem}: {error.message}",
                f'Load its module with modprobe {filesystem}, or use type = "ext4".',
            ) from error
        raise
