"""What Linux can hold, whatever the filesystem."""

from __future__ import annotations

from fledge.errors import CorruptError
from fledge.tree.names import printable
from fledge.tree.nodes import Device, Symlink, Tree

MAX_NAME = 255
"""The longest name of one directory entry in bytes, as in Linux (NAME_MAX)."""

MAX_PATH = 4096
"""The longest path or link target in bytes, with the closing NUL, as in Linux (PATH_MAX)."""

MAX_XATTR_SIZE = 1 << 16
"""Bytes in the value of an extended attribute, as in Linux (XATTR_SIZE_MAX)."""

POSIX_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")
"""The extended attributes that hold access control lists (acl(5))."""

MAX_ID = (1 << 32) - 2
"""The highest user or group; the one above it stands for none."""

MAX_MAJOR = (1 << 12) - 1
MAX_MINOR = (1 << 20) - 1
"""Of device numbers in Linux."""


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
