"""Writes a tree as real files into a folder of the host.

Every path is resolved relative to the open folder. The folder must be empty and used by nobody
else: then every parent is a directory made here, and no symlink of the tree is ever followed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Container

from fledge.errors import CorruptError
from fledge.host.files import pwrite
from fledge.report import Transfer
from fledge.tree import Device, Directory, Fifo, File, Node, Symlink, Tree
from fledge.tree.blocks import data_pieces, nonzero_runs
from fledge.tree.content import Content, content_size
from fledge.tree.names import printable

REFUSALS = (errno.EINVAL, errno.ENAMETOOLONG, errno.EMLINK, errno.EFBIG)
"""Errors with which a filesystem rejects a node that exceeds its limits. xfs has shorter symlinks
and fewer device numbers than ext4, btrfs fewer hard links within one directory."""


def populate(
    tree: Tree,
    root: int,
    *,
    leaving_out: Container[bytes] = (),
    progress: Transfer | None = None,
) -> None:
    """Create the tree's nodes in the folder open as ``root``, with permissions for the owner only.

    ``progress`` is told the bytes of files. Hard links stay hard links, and blocks of zeros become
    holes. Nodes at the paths in ``leaving_out`` are skipped. Only root may create devices. The tree
    must pass `check_fits`.

    Raises `CorruptError` if a node exceeds the limits of this filesystem, `FledgeError` if a
    content cannot be read, `OSError` for any other failure.
    """
    progress = progress or Transfer()
    nodes = {node for _, node in tree.walk()}
    sizes = (content_size(node.content) for node in nodes if isinstance(node, File))
    progress.restart(0, sum(sizes))
    first: dict[Node, bytes] = {}
    for path, node in tree.walk():
        if node is tree.root or path in leaving_out:
            continue
        try:
            if node in first:
                os.link(first[node], path, src_dir_fd=root, dst_dir_fd=root, follow_symlinks=False)
            elif isinstance(node, File):
                _write_file(path, node.content, root, progress)
            else:
                _make(path, node, root)
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            raise CorruptError(
                f"/{printable(path)} does not fit into this filesystem: {error.strerror}",
                "Leave it out of the image, or use ext4, which has the widest limits.",
            ) from error
        if not isinstance(node, Directory):
            first.setdefault(node, path)


def set_metadata(tree: Tree, root: int) -> None:
    """Set owners, modes, extended attributes and times of the nodes that `populate` created.

    Needs root. Raises `CorruptError` if this filesystem cannot store an extended attribute,
    `OSError` for any other failure.
    """
    nodes = {node: path or b"." for path, node in tree.walk()}
    for node, path in reversed(nodes.items()):
        os.chown(path, node.uid, node.gid, dir_fd=root, follow_symlinks=False)
        if not isinstance(node, Symlink):
            os.chmod(path, node.mode, dir_fd=root)
        for name, value in sorted(node.xattrs.items()):
            try:
                absolute = b"/proc/self/fd/%d/" % root + path
                os.setxattr(absolute, name, value, follow_symlinks=False)
            except OSError as error:
                raise CorruptError(
                    f"/{printable(path)}: the extended attribute {printable(name)}"
                    f" cannot be stored: {error.strerror}"
                ) from error
        times = (node.mtime_ns, node.mtime_ns)
        os.utime(path, ns=times, dir_fd=root, follow_symlinks=False)


def _make(path: bytes, node: Node, root: int) -> None:
    """Create a node that is not a regular file."""
    if isinstance(node, Directory):
        os.mkdir(path, 0o700, dir_fd=root)
        os.chmod(path, 0o700, dir_fd=root)  # mkdir applies the umask
    elif isinstance(node, Symlink):
        os.symlink(node.target, path, dir_fd=root)
    elif isinstance(node, Fifo):
        os.mkfifo(path, 0o600, dir_fd=root)
    elif isinstance(node, Device):
        number = os.makedev(node.major, node.minor)
        os.mknod(path, node.file_type | 0o600, number, dir_fd=root)


def _write_file(path: bytes, content: Content, root: int, progress: Transfer) -> None:
    """Make a regular file."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=root)
    done = 0
    try:
        os.fchmod(file, 0o600)
        for piece_start, piece in data_pieces(content):
            for start, stop in nonzero_runs(piece):
                pwrite(file, memoryview(piece)[start:stop], piece_start + start)
            progress.advance(piece_start + len(piece) - done)
            done = piece_start + len(piece)
        os.ftruncate(file, content_size(content))
        progress.advance(content_size(content) - done)
    finally:
        os.close(file)
