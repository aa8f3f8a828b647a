"""Private folders for what a build writes before it is finished.

    OUTPUT's folder/
        .fledge-HEX/      only its owner can enter it; locked by the process that uses it
            ...           files that are renamed to their outputs, or removed
        OUTPUT

A process that is killed leaves its folder behind, but the kernel drops its lock (flock(2)). So the
next one that works in the same place can tell it from a folder in use, and removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from fledge.host.signals import uninterrupted

PREFIX = ".fledge-"
"""The prefix of the name of every private folder."""

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class PrivateFolder(msgspec.Struct, frozen=True):
    """An open folder that no other user can enter, so nobody plants symlinks in it."""

    name: str
    descriptor: int
    """The open folder. Paths are resolved relative to it, wherever it has been moved."""

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """Open a new file in the folder for writing. Raises `OSError`."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(name, flags, 0o600, dir_fd=self.descriptor), "wb") as file:  # noqa: PTH123 -- a descriptor
            yield file

    @contextmanager
    def make_folder(self, name: str) -> Iterator[int]:
        """Make a folder in the folder, and open it. Raises `OSError`."""
        os.mkdir(name, 0o700, dir_fd=self.descriptor)
        made = os.open(name, _OPEN_FOLDER, dir_fd=self.descriptor)
        try:
            yield made
        finally:
            os.close(made)


@contextmanager
def private_folder(parent: int) -> Iterator[PrivateFolder]:
    """Create a folder in the open folder ``parent``, and remove it with its content at the end.

    What cannot be removed stays for `remove_abandoned`. Raises `OSError` if there can be no folder.
    """
    made: list[PrivateFolder] = []
    try:
        with uninterrupted():
            made.append(_create(parent))
        yield made[0]
    finally:
        with uninterrupted():
            for folder in made:
                # The work is done, or has failed for a reason that a person has to see.
                with suppress(OSError):
                    _remove(folder, parent)
                os.close(folder.descriptor)


@contextmanager
def temporary_folder() -> Iterator[tuple[Path, PrivateFolder]]:
    """Create a private folder in the folder for temporary files (``TMPDIR``), as (path, folder).

    Removes those that killed processes have left there. Raises `OSError`.
    """
    place = Path(tempfile.gettempdir())
    parent = open_folder(place)
    try:
        remove_abandoned(parent)
        with private_folder(parent) as folder:
            yield place / folder.name, folder
    finally:
        os.close(parent)


def open_folder(path: Path) -> int:
    """Open a folder as a place for `private_folder`; it need not be readable. Raises `OSError`."""
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def remove_abandoned(parent: int) -> int:
    """Remove the private folders of this user in ``parent`` whose processes were killed.

    Returns their number. What cannot be removed stays.
    """
    removed = 0
    for name in _private_names(parent):
        with suppress(OSError):
            descriptor = os.open(name, _OPEN_FOLDER, dir_fd=parent)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(PrivateFolder(name, descriptor), parent)
                    removed += 1
            finally:
                os.close(descriptor)
    return removed


def _private_names(parent: int) -> list[str]:
    try:
        readable = os.open(".", _OPEN_FOLDER, dir_fd=parent)
    except PermissionError:  # a user may have write access to a folder but no read access
        return []
    try:
        return [name for name in os.listdir(readable) if name.startswith(PREFIX)]
    finally:
        os.close(readable)


def _create(parent: int) -> PrivateFolder:
    while True:
        name = PREFIX + secrets.token_hex(8)
        os.mkdir(name, 0o700, dir_fd=parent)
        try:
            descriptor = os.open(name, _OPEN_FOLDER, dir_fd=parent)
        except FileNotFoundError:  # `remove_abandoned` was faster than the lock
            continue
        status = os.fstat(descriptor)
        if status.st_uid == os.geteuid() and _lock(descriptor) and os.fstat(descriptor).st_nlink:
            return PrivateFolder(name, descriptor)
        os.close(descriptor)
        if status.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "a new folder there belongs to another user")


def _lock(descriptor: int) -> bool:
    """Lock a private folder. Return False if another process has locked it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a filesystem without locks, where no folder is ever taken for abandoned
    return True


def _remove(folder: PrivateFolder, parent: int) -> None:
    """Remove a folder with all in it. Nested folders are moved up first, however deep they are."""
    top = folder.descriptor
    while names := os.listdir(top):
        for name in names:
            if not _unlink(name, top):
                nested = os.open(name, _OPEN_FOLDER, dir_fd=top)
                try:
                    for inner in os.listdir(nested):
                        if not _unlink(inner, nested):
                            moved = secrets.token_hex(8)
                            os.rename(inner, moved, src_dir_fd=nested, dst_dir_fd=top)
                finally:
                    os.close(nested)
                os.rmdir(name, dir_fd=top)
    os.rmdir(folder.name, dir_fd=parent)


def _unlink(name: str, folder: int) -> bool:
    """Remove a file. Return False if it is a folder."""
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        return False
    return True
