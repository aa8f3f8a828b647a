"""Files of the host: an output that appears whole or not at all."""

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


def check_output(output: Path) -> None:
    """Raise `ConfigError` or `HostError` if a file cannot be written there."""
    folder = output.parent
    try:
        mode = output.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = stat.S_IFREG
    except OSError as error:
        raise _explained(error, output) from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise ConfigError(f"{output} is {kind}", "Name a file with -o FILE.")
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder", "Create it, or choose another with -o FILE.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise HostError(
            f"{folder} is not writable for you",
            "Change its permissions, or choose another folder with -o FILE.",
        )


@contextmanager
def replacing(output: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``output`` when the block ends without exception.

    It is written beside it, synced and renamed, so whoever looks sees the old file or the
    whole new one; of a symlink, what it leads to is replaced. Raises `FledgeError` if the disk
    is full, `HostError` if it refuses.
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
        raise _explained(error, output) from error


def pwrite(file: int, data: bytes | bytearray | memoryview, position: int) -> None:
    """Write all of it."""
    left = memoryview(data)
    while left:
        count = os.pwrite(file, left, position)
        left, position = left[count:], position + count


def _explained(error: OSError, output: Path) -> FledgeError:
    message = f"{output} could not be written: {reason(error)}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FledgeError(
            message,
            f"Free some space in {output.parent}, or choose another folder with -o FILE.",
        )
    return HostError(message, "Choose another with -o FILE.")


def _sync_folder(folder: Path) -> None:
    with suppress(PermissionError):  # one may write to a folder that one may not read
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
