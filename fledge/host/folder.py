"""A tree as real files in a folder of the host.

Every path is resolved relative to the open folder. It must be empty and nobody else's: then
all parents on the way are directories made here, and no symlink of the tree is ever followed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Container
from contextlib import suppress

from fledge.errors import CorruptError
from fledge.host.files import pwrite
from fledge.tree import Device, Directory, Fifo, File, Node, Symlink, Tree
from fledge.tree.blocks import data_pieces, nonzero_runs
from fledge.tree.content import Content, content_size
from fledge.tree.names import printable

REFUSALS = (errno.EINVAL, errno.ENAMETOOLONG, errno.EMLINK, errno.EFBIG)
"""How a filesystem says that it cannot represent something: xfs has shorter symlinks and
fewer device numbers, btrfs fewer hard links within one directory."""


def populate(tree: Tree, root: int, *, leaving_out: Container[bytes] = ()) -> None:
    """Make the tree's nodes in the folder open as ``root``, for their owner only.

    Hard links are hard links; long runs of zeros are holes; devices take root. ``leaving_out``
    are paths. The tree must pass `check_fits`. Raises `CorruptError` for what this filesystem
    cannot hold, `FledgeError` if a content cannot be read, `OSError` if the folder refuses.
    """
    first: dict[Node, bytes] = {}
    for path, node in tree.walk():
        if node is tree.root or path in leaving_out:
            continue
        try:
            if node in first:
                os.link(first[node], path, src_dir_fd=root, dst_dir_fd=root, follow_symlinks=False)
            elif isinstance(node, File):
                _write_file(path, node.content, root)
            else:
                _make(path, node, root)
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            raise CorruptError(
                f"/{printable(path)} does not fit into this filesystem: {error.strerror}",
                "Leave it out of the image. Of the filesystems, ext4 has the widest limits.",
            ) from None
        if not isinstance(node, Directory):
            first.setdefault(node, path)


def set_metadata(tree: Tree, root: int) -> None:
    """Give what `populate` made its owners, modes, xattrs and times. Takes root.

    Raises `CorruptError` for xattrs that this filesystem does not hold.
    """
    nodes = {node: path or b"." for path, node in tree.walk()}
    for node, path in reversed(nodes.items()):
        os.chown(path, node.uid, node.gid, dir_fd=root, follow_symlinks=False)
        if not isinstance(node, Symlink):
            os.chmod(path, node.mode, dir_fd=root)
        for name, value in sorted(node.xattrs.items()):
            try:
                reached = b"/proc/self/fd/%d/" % root + path
                os.setxattr(reached, name, value, follow_symlinks=False)
            except OSError as error:
                raise CorruptError(
                    f"/{printable(path)}: the extended attribute {printable(name)}"
                    f" cannot be stored: {error.strerror}"
                ) from None
        times = (node.mtime_ns, node.mtime_ns)
        os.utime(path, ns=times, dir_fd=root, follow_symlinks=False)


def remove(tree: Tree, root: int) -> None:
    """Remove what `populate` made, however deep it is and however far it came."""
    for path, node in reversed(list(tree.walk())):
        with suppress(FileNotFoundError, NotADirectoryError):
            if not isinstance(node, Directory):
                os.unlink(path, dir_fd=root)
            elif path:
                os.rmdir(path, dir_fd=root)


def _make(path: bytes, node: Node, root: int) -> None:
    """Make anything but a regular file."""
    if isinstance(node, Directory):
        os.mkdir(path, 0o700, dir_fd=root)
        os.chmod(path, 0o700, dir_fd=root)  # whatever the umask took away
    elif isinstance(node, Symlink):
        os.symlink(node.target, path, dir_fd=root)
    elif isinstance(node, Fifo):
        os.mkfifo(path, 0o600, dir_fd=root)
    elif isinstance(node, Device):
        number = os.makedev(node.major, node.minor)
        os.mknod(path, node.file_type | 0o600, number, dir_fd=root)


def _write_file(path: bytes, content: Content, root: int) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=root)
    try:
        os.fchmod(file, 0o600)
        for piece_start, piece in data_pieces(content):
            for start, stop in nonzero_runs(piece):
                pwrite(file, memoryview(piece)[start:stop], piece_start + start)
        os.ftruncate(file, content_size(content))
    finally:
        os.close(file)
