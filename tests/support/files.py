"""Files that are not regular, given where a regular one is needed."""

import os
import stat
from pathlib import Path

KINDS = ("fifo", "socket", "device", "folder", "kernel")


def irregular(folder: Path, kind: str, name: str = "irregular") -> Path:
    """Make a file of one of `KINDS`, or a symlink to one that every Linux has."""
    path = folder / name
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "/proc/self/environ")
    return path
