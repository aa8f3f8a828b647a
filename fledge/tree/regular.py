"""Opens regular files of this machine.

A path may name anything. To open a fifo waits for another program, a device or a file of ``/proc``
may never end, and a device may act when it is opened.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from functools import cache
from pathlib import Path

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a fifo",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
"""What to call a file that is not regular."""


class IrregularFileError(OSError):
    """The file is not regular. ``strerror`` says what it is."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(errno.EINVAL, f"it is {problem}, not a regular file", str(path))


def problem_of(status: os.stat_result) -> str | None:
    """Return what a file is if it is not regular, such as ``a fifo``; None if it is regular.

    The kernel makes up what is in the files of ``/proc`` and ``/sys`` when they are read. They
    count as not regular, although stat(2) says that they are.
    """
    if kind := KINDS.get(stat.S_IFMT(status.st_mode)):
        return kind
    return "made up by the kernel" if status.st_dev in _virtual_filesystems() else None


def check_regular(path: Path) -> None:
    """Raise `IrregularFileError` if a file is not regular, `OSError` if there is none."""
    if problem := problem_of(path.stat()):
        raise IrregularFileError(path, problem)


def open_regular(path: Path) -> io.FileIO:
    """Open a regular file to read. Raises `IrregularFileError`, or any other `OSError`."""
    check_regular(path)
    # The file may have been replaced since: never wait for a writer, or become a terminal's owner.
    file = io.FileIO(path, opener=_open_without_waiting)
    if problem := problem_of(os.fstat(file.fileno())):
        file.close()
        raise IrregularFileError(path, problem)
    return file


def read_regular(path: Path, limit: int) -> bytes:
    """Return the first ``limit`` bytes of a regular file, at most. Raises as `open_regular`."""
    with open_regular(path) as raw, io.BufferedReader(raw) as file:
        return file.read(limit)


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


@cache
def _virtual_filesystems() -> frozenset[int]:
    """Return the device numbers of procfs and sysfs."""
    folders = (Path("/proc"), Path("/sys"))
    return frozenset(each.stat().st_dev for each in folders if os.path.ismount(each))
