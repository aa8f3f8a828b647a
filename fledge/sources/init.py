"""What the kernel finds when it unpacks an initramfs: ``/init`` and the nodes it needs."""

from __future__ import annotations

from pathlib import Path

from fledge.tree import CharDevice, Directory, File, Tree
from fledge.tree.content import Span

MOUNT_POINTS = {
    b"/dev": 0o755,
    b"/proc": 0o555,
    b"/run": 0o755,
    b"/sys": 0o555,
    b"/tmp": 0o1777,
}
"""What the built-in init mounts something on, with the permissions of the bare folder."""

DEVICES = {
    b"/dev/console": (0o600, 5, 1),
    b"/dev/null": (0o666, 1, 3),
}
"""The kernel opens ``/dev/console`` for init before there is a devtmpfs."""

SCRIPT = Path(__file__).with_name("init.sh")
"""The built-in init."""


def install(tree: Tree, init: Span | None) -> None:
    """Lay the mount points and device nodes over the tree, and ``init`` as ``/init``.

    A folder that the tree has already stays as it is, and so does ``/init`` without one.
    """
    for path, mode in MOUNT_POINTS.items():
        if not isinstance(tree.get(path, follow=True), Directory):
            tree.add(path, Directory(mode=mode, mtime_ns=tree.mtime_ns))
    for path, (mode, major, minor) in DEVICES.items():
        tree.add(path, CharDevice(mode=mode, mtime_ns=tree.mtime_ns, major=major, minor=minor))
    if init is not None:
        tree.add(b"/init", File(mode=0o755, mtime_ns=tree.mtime_ns, content=init))


def is_executable(tree: Tree) -> bool:
    """Whether the kernel would run ``/init``."""
    node = tree.get(b"/init", follow=True)
    return isinstance(node, File) and bool(node.mode & 0o111)
