"""Entries of an image as the kernel shows them, to compare with a tree."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from fledge.tree import Device, Directory, File, Node, Symlink, Tree
from fledge.tree.content import read_content


class Entry(NamedTuple):
    """The facts about one path."""

    mode: int
    """Includes the S_IFMT bits."""
    uid: int
    gid: int
    mtime_ns: int
    links: int | None
    """None for directories, because btrfs does not count their links."""
    size: int | None
    """Only of regular files."""
    data: str | bytes | tuple[int, int] | None
    """A file's sha256, a symlink's target, or a device's major and minor number."""
    xattrs: dict[bytes, bytes]
    same_as: bytes
    """The first path of the same inode."""


Listing = dict[bytes, Entry]


def list_tree(tree: Tree) -> Listing:
    """Return what a mounted image of the tree should show."""
    links = Counter(node for _, node in tree.walk())
    first: dict[Node, bytes] = {}
    return {
        path: Entry(
            node.file_type | (0o777 if isinstance(node, Symlink) else node.mode),
            node.uid,
            node.gid,
            node.mtime_ns,
            None if isinstance(node, Directory) else links[node],
            sum(map(len, read_content(node.content))) if isinstance(node, File) else None,
            _holds(node),
            dict(node.xattrs),
            first.setdefault(node, path),
        )
        for path, node in tree.walk()
    }


def list_folder(folder: Path) -> Listing:
    """Return the entries of a folder, its root as ``b""``, in the order of `Tree.walk`."""
    first: dict[int, bytes] = {}
    listing: Listing = {}
    pending = [b""]
    while pending:
        path = pending.pop()
        full = os.fsencode(folder) + b"/" + path
        status = os.lstat(full)
        kind = stat.S_IFMT(status.st_mode)
        data: str | bytes | tuple[int, int] | None = None
        if kind == stat.S_IFREG:
            with open(full, "rb") as file:  # noqa: PTH123 -- the path is bytes
                data = hashlib.sha256(file.read()).hexdigest()
        elif kind == stat.S_IFLNK:
            data = os.readlink(full)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            data = os.major(status.st_rdev), os.minor(status.st_rdev)
        listing[path] = Entry(
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            None if kind == stat.S_IFDIR else status.st_nlink,
            status.st_size if kind == stat.S_IFREG else None,
            data,
            _xattrs(full),
            first.setdefault(status.st_ino, path),
        )
        if kind == stat.S_IFDIR:
            prefix = path + b"/" if path else b""
            pending += [prefix + name for name in sorted(os.listdir(full), reverse=True)]
    return listing


@contextmanager
def mounted(image: Path) -> Iterator[Path]:
    """Mount an image read-only; skip the test if that is not possible."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount an image")
    with tempfile.TemporaryDirectory(prefix="mounted-") as folder:
        command: list[str | Path] = ["mount", "-o", "loop,ro", image, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "failed to setup loop device" in done.stderr:
            pytest.skip("no loop device")
        assert done.returncode == 0, done.stderr
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


@contextmanager
def writable(image: Path) -> Iterator[Path]:
    """Mount an image read-write."""
    with tempfile.TemporaryDirectory(prefix="mounted-") as folder:
        subprocess.run(["mount", "-o", "loop", image, folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def writable_size(folder: Path, uid: int) -> int:
    """Return how many bytes the user can write into one new file of the folder."""
    path = folder / f"written-by-{uid}"
    path.touch()
    os.chown(path, uid, uid)
    fill = ["dd", "if=/dev/zero", f"of={path}", "bs=4k", "conv=fsync"]
    done = subprocess.run(fill, user=uid, capture_output=True, text=True, check=False)
    assert "No space left on device" in done.stderr, done.stderr
    size = path.stat().st_size
    path.unlink()
    os.sync()
    return size


def loop_devices(folder: Path) -> list[str]:
    """Return the files below a folder that loop devices use."""
    used = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):  # released meanwhile
            used.append(path.read_text().strip())
    # A file in another mount namespace is named from the root of its filesystem.
    return [name for name in used if folder.name in Path(name).parts]


def list_image(image: Path) -> Listing:
    """Return what the kernel shows of an image."""
    with mounted(image) as folder:
        return list_folder(folder)


def _holds(node: Node) -> str | bytes | tuple[int, int] | None:
    if isinstance(node, File):
        digest = hashlib.sha256()
        for piece in read_content(node.content):
            digest.update(piece)
        return digest.hexdigest()
    if isinstance(node, Symlink):
        return node.target
    if isinstance(node, Device):
        return node.major, node.minor
    return None


def _xattrs(path: bytes) -> dict[bytes, bytes]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.ENOTSUP:  # a squashfs none of whose files has any
            raise
        return {}
    return {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}
