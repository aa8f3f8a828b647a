"""The limits that Linux sets for every filesystem."""

from __future__ import annotations

from fledge.errors import CorruptError
from fledge.tree.names import printable
from fledge.tree.nodes import Device, Symlink, Tree

MAX_NAME = 255
"""Maximum bytes in the name of a directory entry (NAME_MAX)."""

MAX_PATH = 4096
"""Maximum bytes in a path or link target, including the terminating NUL (PATH_MAX)."""

MAX_XATTR_SIZE = 1 << 16
"""Maximum bytes in the value of an extended attribute (XATTR_SIZE_MAX)."""

POSIX_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")
"""The extended attributes that hold access control lists (acl(5))."""

MAX_ID = (1 << 32) - 2
"""The highest user or group ID; the next one, (uid_t) -1, means "no user"."""

MAX_MAJOR = (1 << 12) - 1
"""The highest major device number."""
MAX_MINOR = (1 << 20) - 1
"""The highest minor device number."""

DISK_INIT_PATHS = (b"/sbin/init", b"/etc/init", b"/bin/init", b"/bin/sh")
"""The programs that the kernel tries as init on a root disk, in this order (init/main.c)."""


def check_fits(tree: Tree) -> None:
    """Raise `CorruptError` if any node exceeds a limit of Linux. The message names the path."""
    for path, node in tree.walk():
        if len(path) >= MAX_PATH:
            raise CorruptError(
                f"/{printable(path[:200])}…: the path is longer than the {MAX_PATH - 1} bytes"
                " that Linux can open",
                "Nest its folders less deeply.",
            )
        if len(path) > MAX_NAME and len(path.rpartition(b"/")[2]) > MAX_NAME:
            raise CorruptError(
                f"/{printable(path[:200])}…: the name is longer than the {MAX_NAME} bytes that"
                " Linux takes",
                "Shorten it in the image.",
            )
        if not (0 <= node.uid <= MAX_ID and 0 <= node.gid <= MAX_ID):
            raise CorruptError(
                f"/{printable(path)}: Linux has no owner {node.uid}:{node.gid}; the highest ID is"
                f" {MAX_ID}",
                "Give it another owner in the image.",
            )
        if isinstance(node, Symlink) and not 0 < len(node.target) < MAX_PATH:
            raise CorruptError(
                f"/{printable(path)}: the symlink's target is {len(node.target)} bytes long;"
                f" Linux takes 1 to {MAX_PATH - 1}",
                "Make the symlink again in the image.",
            )
        if isinstance(node, Device) and not (
            0 <= node.major <= MAX_MAJOR and 0 <= node.minor <= MAX_MINOR
        ):
            raise CorruptError(
                f"/{printable(path)}: Linux has no device {node.major}:{node.minor}; the highest"
                f" is {MAX_MAJOR}:{MAX_MINOR}",
                "Remove it from the image: a guest makes its devices itself.",
            )
