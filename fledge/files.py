"""Files of the host: an output that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fledge.errors import ConfigError, FledgeError, HostError


def check_output(output: Path) -> None:
    """Raise `ConfigError` or `HostError` if a file cannot be written there."""
    folder = output.parent
    if output.is_dir():
        raise ConfigError(f"{output} is a folder", "Name a file with -o FILE.")
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
    whole new one. Raises `FledgeError` if the disk is full, `HostError` if it refuses.
    """
    partial = output.with_name(f".fledge-{secrets.token_hex(8)}.partial")
    try:
        try:
            with partial.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(output)
        finally:
            partial.unlink(missing_ok=True)
        _sync_folder(output.parent)
    except OSError as error:
        raise _explained(error, output) from error


def _explained(error: OSError, output: Path) -> FledgeError:
    reason = (error.strerror or str(error)).lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FledgeError(
            f"{output} could not be written: {reason}",
            f"Free some space in {output.parent}, or choose another folder with -o FILE.",
        )
    return HostError(f"{output} could not be written: {reason}", "Choose another with -o FILE.")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
