"""Writes files of the host so that they appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fledge.errors import ConfigError, FledgeError, HostError, reason

PathLike = str | os.PathLike[str]
"""What callers may give in place of a `Path`."""


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
    """Open a new file that replaces ``output`` when the block ends without an exception.

    The new file is written to the same folder, synced and renamed, so other programs see either
    the old file or the complete new one. If ``output`` is a symlink, its target is replaced.
    Raises `FledgeError` if the disk is full, `HostError` if the file cannot be written.
    """
    try:
        target = output.resolve() if output.is_symlink() else output
        partial = target.with_name(f".fledge-{secrets.token_hex(8)}.partial")
        try:
            with partial.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        _sync_folder(target.parent)
    except OSError as error:
        raise _write_error(error, output) from error


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
