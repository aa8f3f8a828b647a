"""Writes files of the host so that they appear whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from fledge.errors import ConfigError, FledgeError, HostError, reason
from fledge.host.signals import uninterrupted, written
from fledge.host.work import open_folder, private_folder, remove_abandoned

PathLike = str | os.PathLike[str]
"""What callers may give in place of a `Path`."""


def check_output(output: Path) -> None:
    """Check that ``output`` can be written, before the work of a build.

    Raises `ConfigError` if the path is a folder, a device or in no folder, `HostError` if the
    user may not write there.
    """
    folder = output.parent
    if _leads_to_proc(output):
        raise ConfigError(
            f"{output} is an open file of a process, and an artifact needs a name",
            "Choose a file with -o; its provenance is written beside it.",
        )
    try:
        mode = output.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = stat.S_IFREG
    except OSError as error:
        raise _write_error(error, output) from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise ConfigError(f"{output} is {kind}", "Choose another place with -o.")
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder", "Create it, or choose another with -o.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise HostError(
            f"you may not write to {folder}",
            "Change its permissions, or choose another folder with -o.",
        )


def _leads_to_proc(output: Path) -> bool:
    """Return whether a path is in /proc, or a link such as /dev/stdout to there."""
    folders = [output.parent]
    with suppress(OSError):
        folders.append((output.parent / os.readlink(output)).parent)
    return any(folder.resolve().is_relative_to("/proc") for folder in folders)


@contextmanager
def replacing(output: Path) -> Iterator[io.BufferedRandom]:
    """Open a new file that replaces ``output``, as `replacing_together` does with several."""
    with replacing_together(output) as [new], new.open() as file:
        yield file


@contextmanager
def replacing_together(*outputs: Path) -> Iterator[Sequence[NewFile]]:
    """Make a new file for each output; they replace the outputs when the block ends well.

    The outputs are in one folder. The new files are in a private folder beside them. When all of
    them are synced they are renamed, one right after the other and without an interrupt in between,
    so other programs see old files or complete new ones. An output keeps its permissions. One that
    is a symlink is replaced itself, and its target stays as it is. Raises `FledgeError` if the disk
    is full, `HostError` if a file cannot be written.
    """
    try:
        parent = open_folder(outputs[0].parent)
        try:
            remove_abandoned(parent)
            with private_folder(parent) as folder:
                new = [NewFile(folder.descriptor, f"output-{n}") for n in range(len(outputs))]
                for each in new:
                    os.close(each.create())
                yield new
                for each, output in zip(new, outputs, strict=True):
                    _finish(each, output.name, parent)
                with written(outputs[0]), uninterrupted():
                    _rename_all(new, outputs, parent)
                    _sync_folder(parent)
        finally:
            os.close(parent)
    except OSError as error:
        raise _write_error(error, outputs[0]) from error


def create(path: Path, data: bytes, mode: int) -> None:
    """Write a file that must not exist. ``mode`` is its permissions, less the umask.

    Raises `ConfigError` if it exists, `FledgeError` if the disk is full, `HostError` if it cannot
    be written.
    """
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with uninterrupted():
            descriptor = os.open(path, flags, mode)
            try:
                with io.FileIO(descriptor, "w") as raw, io.BufferedWriter(raw) as file:
                    file.write(data)
                    file.flush()
                    _sync(descriptor)
            except OSError:
                path.unlink()
                raise
    except FileExistsError as error:
        raise ConfigError(
            f"{path} exists, and is not overwritten", "Choose another name with -o NAME."
        ) from error
    except OSError as error:
        raise _write_error(error, path) from error


class NewFile(msgspec.Struct, frozen=True):
    """A file in a private folder, which becomes an output."""

    folder: int
    """The open private folder. Temporary files may go there, too."""
    name: str

    def create(self) -> int:
        """Create the file, which must not exist, and return its descriptor. Raises `OSError`."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.name, flags, 0o666, dir_fd=self.folder)

    def open(self) -> io.BufferedRandom:
        """Open the file to read and write it. Raises `OSError`."""
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.name, flags, dir_fd=self.folder)
        return io.BufferedRandom(io.FileIO(descriptor, "r+b"))


def _finish(new: NewFile, name: str, parent: int) -> None:
    """Give a new file the permissions of the one that it replaces, and sync it."""
    with new.open() as file:
        with suppress(FileNotFoundError):
            old = os.stat(name, dir_fd=parent, follow_symlinks=False)
            # Nobody else decides who may write to the output.
            if stat.S_ISREG(old.st_mode) and old.st_uid == os.geteuid():
                os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode) & 0o777)
        _sync(file.fileno())


def _rename_all(new: Sequence[NewFile], outputs: Sequence[Path], parent: int) -> None:
    for number, (each, output) in enumerate(zip(new, outputs, strict=True)):
        try:
            os.replace(each.name, output.name, src_dir_fd=each.folder, dst_dir_fd=parent)
        except OSError as error:
            if number == 0:
                raise
            raise HostError(
                f"{outputs[0]} is new, but {output} could not be written: {reason(error)}",
                "Run the command again, for the two belong together.",
            ) from error


def pwrite(file: int, data: bytes | bytearray | memoryview, position: int) -> None:
    """Write all of ``data`` at ``position``, unlike `os.pwrite`. Raises `OSError`."""
    left = memoryview(data)
    while left:
        count = os.pwrite(file, left, position)
        left, position = left[count:], position + count


def _write_error(error: OSError, output: Path) -> FledgeError:
    message = f"{output} could not be written: {reason(error)}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FledgeError(
            message,
            f"Free some space in {output.parent}, or choose another folder with -o.",
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return FledgeError(message, "Raise the limit with ulimit -n.")
    return HostError(message, "Choose another place with -o.")


def _sync_folder(folder: int) -> None:
    with suppress(PermissionError):  # a user may have write access to a folder but no read access
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
        try:
            _sync(descriptor)
        finally:
            os.close(descriptor)


def _sync(descriptor: int) -> None:
    """Wait until a file or folder is stored, where the filesystem can tell. Raises `OSError`."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        # fsync(2): such a filesystem has nothing to wait for; vboxsf and cifs say so of folders.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
