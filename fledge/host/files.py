"""Writes files of the host so that they appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fledge.errors import ConfigError, FledgeError, HostError, reason
from fledge.host.signals import uninterrupted

PathLike = str | os.PathLike[str]
"""What callers may give in place of a `Path`."""

replaced: list[Path] = []
"""The outputs that this process has replaced. Whoever is told of an interrupt must know of them."""


def check_output(output: Path) -> None:
    """Check that ``output`` can be written, before the work of a build.

    Raises `ConfigError` if the path is a folder, a device or in no folder, `HostError` if the
    user may not write there.
    """
    folder = output.parent
    try:
        mode = output.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = stat.S_IFREG
    except OSError as error:
        raise _write_error(error, output) from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise ConfigError(f"{output} is {kind}", "Name a file with -o FILE.")
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder", "Create it, or choose another with -o FILE.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise HostError(
            f"you may not write to {folder}",
            "Change its permissions, or choose another folder with -o FILE.",
        )


@contextmanager
def replacing(output: Path) -> Iterator[BinaryIO]:
    """Open a new file that replaces ``output``, as `replacing_together` does with several."""
    with replacing_together(output) as [file]:
        yield file


@contextmanager
def replacing_together(*outputs: Path) -> Iterator[Sequence[BinaryIO]]:
    """Open a new file for each output; they replace the outputs when the block ends well.

    The new files are written to the same folders. When all of them are synced they are renamed, one
    right after the other and without an interrupt in between, so other programs see old files or
    complete new ones. An output keeps its permissions. If it is a symlink, its target is replaced.
    Raises `FledgeError` if the disk is full, `HostError` if a file cannot be written.
    """
    try:
        targets = [_target(output) for output in outputs]
        partials = [each.with_name(f".fledge-{secrets.token_hex(8)}.partial") for each in targets]
        try:
            with ExitStack() as opened:
                files = [opened.enter_context(partial.open("xb")) for partial in partials]
                yield files
                for file, target in zip(files, targets, strict=True):
                    file.flush()
                    _keep_permissions(file, target)
                    os.fsync(file.fileno())
            with uninterrupted():
                _rename_all(partials, targets, outputs)
                replaced.extend(outputs)
        finally:
            for partial in partials:
                partial.unlink(missing_ok=True)
        for folder in dict.fromkeys(target.parent for target in targets):
            _sync_folder(folder)
    except OSError as error:
        raise _write_error(error, outputs[0]) from error


def _target(output: Path) -> Path:
    """Return the file that is replaced: the target of a symlink.

    Raises `HostError` for a symlink that another user has put into a folder that everyone may write
    to, as the kernel does with fs.protected_symlinks (proc_sys_fs(5)).
    """
    if not output.is_symlink():
        return output
    owner, folder = output.lstat().st_uid, output.parent.stat()
    shared = bool(folder.st_mode & stat.S_IWOTH) and bool(folder.st_mode & stat.S_ISVTX)
    if shared and owner not in (os.geteuid(), folder.st_uid):
        raise HostError(
            f"{output} is a symlink of another user, in a folder that everyone may write to",
            "Remove it, or choose another file with -o FILE.",
        )
    return output.resolve()


def _keep_permissions(file: BinaryIO, target: Path) -> None:
    with suppress(FileNotFoundError):
        os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode) & 0o777)


def _rename_all(partials: list[Path], targets: list[Path], outputs: Sequence[Path]) -> None:
    for number, (partial, target) in enumerate(zip(partials, targets, strict=True)):
        try:
            partial.replace(target)
        except OSError as error:
            if number == 0:
                raise
            raise HostError(
                f"{outputs[0]} is new, but {outputs[number]} could not be written: {reason(error)}",
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
            f"Free some space in {output.parent}, or choose another folder with -o FILE.",
        )
    return HostError(message, "Choose another file with -o FILE.")


def _sync_folder(folder: Path) -> None:
    with suppress(PermissionError):  # a user may have write access to a folder but no read access
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
