"""What the kernel finds when it unpacks an initramfs: ``/init`` and the nodes it needs."""

from __future__ import annotations

from fledge.content import Content
from fledge.tree import CharDevice, Directory, File, Tree

DIRECTORIES = {
    b"/dev": 0o755,
    b"/proc": 0o555,
    b"/run": 0o755,
    b"/sys": 0o555,
    b"/tmp": 0o1777,
}

DEVICES = {
    b"/dev/console": (0o600, 5, 1),
    b"/dev/null": (0o666, 1, 3),
}
"""The kernel opens ``/dev/console`` for init before there is a devtmpfs."""

SCRIPT = b"TODO"


def install(tree: Tree, init: Content | None) -> None:
    """Lay the mount points and device nodes over the tree, and ``init`` as ``/init``.

    A folder that the tree has already stays as it is, and so does ``/init`` without one.
    """
    for path, mode in DIRECTORIES.items():
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
