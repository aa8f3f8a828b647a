"""A tree as real files in a folder of the host.

Every path is resolved relative to the open folder. It must be empty and nobody else's: then
all parents on the way are directories made here, and no symlink of the tree is ever followed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Container, Iterator
from contextlib import suppress

from fledge.content import (
    READ_SIZE,
    Content,
    Sparse,
    content_size,
    read_content,
    read_extents,
)
from fledge.errors import CorruptError
from fledge.files import pwrite
from fledge.tree import (
    MAX_ID,
    MAX_MAJOR,
    MAX_MINOR,
    MAX_NAME,
    MAX_PATH,
    Device,
    Directory,
    Fifo,
    File,
    Node,
    Symlink,
    Tree,
    printable,
)

BLOCK_SIZE = 4096
"""Bytes; what is zero in steps of it becomes a hole."""

REFUSALS = (errno.EINVAL, errno.ENAMETOOLONG, errno.EMLINK, errno.EFBIG)
"""How a filesystem says that it cannot represent something: xfs has shorter symlinks and
fewer device numbers, btrfs fewer hard links within one directory."""

ZERO_BLOCK = bytes(BLOCK_SIZE)


def check_fits(tree: Tree) -> None:
    """Raise `CorruptError`, with the path, for what no Linux filesystem can hold."""
    for path, node in tree.walk():
        if len(path) >= MAX_PATH:
            raise CorruptError(
                f"/{printable(path[:200])}…: the path is longer than the {MAX_PATH - 1} bytes"
                " that Linux can open"
            )
        if len(path) > MAX_NAME and len(path.rpartition(b"/")[2]) > MAX_NAME:
            raise CorruptError(
                f"/{printable(path[:200])}…: the name is longer than the {MAX_NAME} bytes that"
                " Linux takes"
            )
        if not (0 <= node.uid <= MAX_ID and 0 <= node.gid <= MAX_ID):
            raise CorruptError(
                f"/{printable(path)}: its owner {node.uid}:{node.gid} is none that Linux can have;"
                f" the highest number is {MAX_ID}"
            )
        if isinstance(node, Symlink) and not 0 < len(node.target) < MAX_PATH:
            raise CorruptError(
                f"/{printable(path)}: the symlink's target is {len(node.target)} bytes long;"
                f" Linux takes 1 to {MAX_PATH - 1}"
            )
        if isinstance(node, Device) and not (
            0 <= node.major <= MAX_MAJOR and 0 <= node.minor <= MAX_MINOR
        ):
            raise CorruptError(
                f"/{printable(path)}: Linux has no device {node.major}:{node.minor}; the highest"
                f" is {MAX_MAJOR}:{MAX_MINOR}"
            )


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
        for piece_start, piece in _data(content):
            for start, stop in _runs(piece):
                pwrite(file, memoryview(piece)[start:stop], piece_start + start)
        os.ftruncate(file, content_size(content))
    finally:
        os.close(file)


def blocks(content: Content) -> Iterator[tuple[int, bytes]]:
    """The blocks of a content that are not all zeros, and where they are, whatever is a hole.

    Only the last may be shorter than `BLOCK_SIZE`. Raises as `read_content` does.
    """
    for start, piece in _data(content):
        for begin, end in _runs(piece):
            for position in range(begin, end, BLOCK_SIZE):
                yield start + position, piece[position : min(position + BLOCK_SIZE, end)]


def _data(content: Content) -> Iterator[tuple[int, bytes]]:
    """What is not in the holes of a `Sparse`, with its offset, in pieces of whole blocks.

    Only the last may end within a block.
    """
    pieces = read_extents(content) if isinstance(content, Sparse) else _consecutive(content)
    buffer = bytearray()
    start = 0
    for offset, piece in pieces:
        if offset >= start + len(buffer) + BLOCK_SIZE:
            yield start, bytes(buffer) + bytes(-len(buffer) % BLOCK_SIZE)
            buffer.clear()
            start = offset - offset % BLOCK_SIZE
        buffer += bytes(offset - start - len(buffer))
        buffer += piece
        whole = len(buffer) - len(buffer) % BLOCK_SIZE
        if whole >= READ_SIZE:
            yield start, bytes(buffer[:whole])
            del buffer[:whole]
            start += whole
    left = content_size(content) - start - len(buffer)
    yield start, bytes(buffer) + bytes(min(-len(buffer) % BLOCK_SIZE, left))


def _consecutive(content: Content) -> Iterator[tuple[int, bytes]]:
    offset = 0
    for piece in read_content(content):
        yield offset, piece
        offset += len(piece)


def _runs(piece: bytes) -> Iterator[tuple[int, int]]:
    """Where adjacent blocks begin and end that are not all zeros."""
    begin = None
    for block in range(0, len(piece), BLOCK_SIZE):
        if piece.startswith(ZERO_BLOCK[: len(piece) - block], block):
            if begin is not None:
                yield begin, block
            begin = None
        elif begin is None:
            begin = block
    if begin is not None:
        yield begin, len(piece)
