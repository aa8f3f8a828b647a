"""Makes an image with mkfs and copies a tree into it through a loop mount."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from fledge.errors import FledgeError, HostError, reason
from fledge.host import folder, programs
from fledge.host.files import NewFile
from fledge.host.settings import Settings
from fledge.host.work import PrivateFolder, private_folder
from fledge.tree import File, Tree
from fledge.tree.content import content_size
from fledge.tree.limits import check_fits
from fledge.tree.space import MIB, free_space

BLOCK_SIZE = 4096
"""Bytes of a block, of both filesystems."""

NODE_SIZE = 4096
"""Bytes for the metadata of one node: its inode, its name, its extended attributes."""

OVERHEAD = {"xfs": 80 * MIB, "btrfs": 128 * MIB}
"""Bytes of an empty filesystem, by type. xfs needs most of them for its log."""

MIN_SIZE = 320 * MIB
"""Bytes of the smallest image. mkfs.xfs refuses less than 300 MiB."""

CLONE_NEWNS = 0x20000
"""The flag for a new mount namespace (unshare(2))."""

_LIBC = ctypes.CDLL(None, use_errno=True)
"""The C library, for unshare, which Python has since 3.12 only."""


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
    file: NewFile,
    filesystem: str,
    *,
    size_buffer_mb: int = 0,
    align_mb: int = 0,
    preallocate: bool = False,
    settings: Settings,
) -> None:
    """Write an image of the tree to ``file``. ``filesystem`` is xfs or btrfs.

    At least ``free_space(size_buffer_mb, …)`` bytes stay free, and the size is a multiple of
    ``align_mb`` MiB. Nothing stays mounted, even if this process is killed. Raises `HostError` if
    root, a tool, a loop device or a kernel module is missing; `CorruptError` if the filesystem
    cannot store a node; `FledgeError` if a tool fails; `OSError` if the image cannot be written.
    """
    check(filesystem, settings)
    check_fits(tree)
    size = _image_size(tree, filesystem, size_buffer_mb)
    size += -size % ((align_mb or 1) * MIB)
    with file.open() as image:
        image.truncate(0)
        image.truncate(size)
        if preallocate:
            os.posix_fallocate(image.fileno(), 0, size)
    # -K: do not discard blocks, because that would undo the preallocation.
    arguments = ("-q", "-K", file.name)
    programs.run(f"mkfs.{filesystem}", *arguments, folder=file.folder, settings=settings)
    with _mounted(file, filesystem, settings) as root:
        with _told_when_full(filesystem, root):
            folder.populate(tree, root)
            folder.set_metadata(tree, root)
        # Reports writes that failed because the disk below the image is full.
        programs.run("sync", "--file-system", ".", folder=root, settings=settings)


def _image_size(tree: Tree, filesystem: str, size_buffer_mb: int) -> int:
    nodes = {node for _, node in tree.walk()}
    sizes = [content_size(node.content) for node in nodes if isinstance(node, File)]
    content = sum(size + -size % BLOCK_SIZE for size in sizes)
    needed = content + len(nodes) * NODE_SIZE + free_space(size_buffer_mb, content)
    # Both filesystems use a share of their size for trees and reserves.
    return max(MIN_SIZE, OVERHEAD[filesystem] + needed + needed // 10) // MIB * MIB + MIB


@contextmanager
def _told_when_full(filesystem: str, root: int) -> Iterator[None]:
    """Raise `FledgeError` if the filesystem at ``root`` is full. A full disk of the host is not
    meant: writes to the mounted image do not notice it.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise FledgeError(
            f"the {filesystem} image is too small for its files: {reason(error)}",
            'Set a higher size_buffer_mb, or use type = "ext4", whose size fledge knows exactly.',
        ) from error


@contextmanager
def _mounted(file: NewFile, filesystem: str, settings: Settings) -> Iterator[int]:
    """Mount an image and return a descriptor of its root directory.

    The mount is detached at once, so that only the descriptor keeps it alive. Until then it is in a
    mount namespace of a thread. So when this process ends, at whatever moment, the kernel unmounts
    the image and frees the loop device.
    """
    with private_folder(file.folder) as work, work.make_folder("mount"):
        thread = ThreadPoolExecutor(1)
        mounting = thread.submit(_mount_detached, file, work, filesystem, settings)
        try:
            yield mounting.result()
        finally:
            thread.shutdown()
            if not mounting.exception():
                os.close(mounting.result())


def _mount_detached(file: NewFile, work: PrivateFolder, filesystem: str, settings: Settings) -> int:
    """Mount an image and return a descriptor of its root directory, the only thing that keeps it.

    The calling thread is left in a mount namespace of its own.
    """
    if _LIBC.unshare(CLONE_NEWNS):
        problem = os.strerror(ctypes.get_errno()).lower()
        raise HostError(
            f"no mount namespace can be made: {problem}",
            'Run fledge with CAP_SYS_ADMIN, or use type = "ext4", which needs no privileges.',
        )
    # Otherwise the mount would propagate to the namespaces of other processes.
    programs.run("mount", "--make-rprivate", "/", folder=work.descriptor, settings=settings)
    os.symlink(f"../{file.name}", "image", dir_fd=work.descriptor)
    here = _open_again(work.descriptor)
    try:
        _mount(here, filesystem, settings)
        root = os.open("mount", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        try:
            programs.run("umount", "--lazy", "mount", folder=here, settings=settings)
        except BaseException:
            os.close(root)
            raise
    finally:
        os.close(here)
    return root


def _open_again(folder: int) -> int:
    """Open a folder in the namespace of the calling thread, where mounts in it can be seen."""
    again = os.open(os.readlink(f"/proc/self/fd/{folder}"), os.O_RDONLY | os.O_DIRECTORY)
    if not os.path.sameopenfile(folder, again):
        os.close(again)
        raise HostError("the folder of the image was moved while it was mounted")
    return again


def _mount(folder: int, filesystem: str, settings: Settings) -> None:
    options = "loop,nosuid,nodev,noexec"
    try:
        arguments = ("-n", "-t", filesystem, "-o", options, "image", "mount")
        programs.run("mount", *arguments, folder=folder, settings=settings)
    except FledgeError as error:
        try:
            programs.run("losetup", "--find", folder=folder, settings=settings)
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
