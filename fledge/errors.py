"""The exceptions that fledge raises, and the exit codes of the command line.

    FledgeError              exit code 1: any other failure, such as a full disk
    ├── ConfigError                   2: the command line, fledge.toml or a file it names is wrong
    │   └── InvalidConfig             2: lists every problem of a file (fledge.project.toml)
    ├── NetworkError                  3: a server is unreachable, or refuses or fails a request
    │   └── OfflineError              3: something is missing, and the session is offline
    ├── CorruptError                  4: an input is damaged, or does not match its checksum
    ├── HostError                     5: this machine lacks a tool or a privilege
    └── ExpectationError              6: a guest did not do what was expected of it

The ``message`` of an exception says what happened and where: file and key, URL, or path in the
image. Its ``details`` are further lines, such as one for each problem of a file, and its ``hint``
says what to do about it. ``str()`` returns all of them. The command line exits with the
``exit_code`` of the class.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar


class FledgeError(Exception):
    """A failure that fledge explains. ``hint`` says what to do about it; it may be empty.

    ``message``, ``hint`` and each of the ``details`` are one line: a line break in one of them is
    part of a name, to be escaped where it is shown.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "", details: Sequence[str] = ()) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint
        self.details = tuple(details)

    def __str__(self) -> str:
        hint = [self.hint] if self.hint else []
        return "\n".join([self.message, *(f"  {line}" for line in self.details), *hint])


class ConfigError(FledgeError):
    """The command line, ``fledge.toml`` or a file that it names is wrong."""

    exit_code = 2


class NetworkError(FledgeError):
    """A server cannot be reached, or does not answer a request as it should."""

    exit_code = 3


class OfflineError(NetworkError):
    """Something must be downloaded or looked up, but the session is offline."""


class CorruptError(FledgeError):
    """An input is damaged, malformed, hostile, or does not match its checksum."""

    exit_code = 4


class HostError(FledgeError):
    """This machine lacks a tool or a privilege."""

    exit_code = 5


class ExpectationError(FledgeError):
    """A guest ended, or its time was over, before it did all that was expected of it."""

    exit_code = 6


class MalformedError(Exception):
    """Bytes or text that violate their format.

    Parsers raise it and say what is wrong. The caller, which knows the file, layer or URL, turns
    it into a `CorruptError` or `ConfigError`.
    """


@contextmanager
def explained_memory(what: str) -> Iterator[None]:
    """Turn a failure to get memory in the context into a `CorruptError`. ``what`` needs it."""
    try:
        yield
    except (MemoryError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENOMEM:
            raise
        # The frames of the traceback would keep everything that has filled the memory.
        cause = error.with_traceback(None)
        raise CorruptError(
            f"{what} needs more memory than fledge can get",
            "If you trust where it comes from, let fledge have more memory.",
        ) from cause


def reason(error: OSError) -> str:
    """Return the reason that the operating system gave for ``error``."""
    if isinstance(error, FileNotFoundError):
        return "no such file or folder"
    return (error.strerror or str(error)).lower()


def unreadable(path: Path, error: OSError) -> FledgeError:
    """Make the error for a file of this machine that cannot be read."""
    return FledgeError(f"{path} could not be read: {reason(error)}")


def unreadable_argument(path: Path, error: OSError) -> FledgeError:
    """Make the error for a file that a person has named and that cannot be read.

    If no regular file has that name it is a `ConfigError`.
    """
    # EINVAL: it is not a regular file.
    wrong = (errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP)
    if error.errno in (*wrong, errno.EISDIR):
        return ConfigError(f"{path} could not be read: {reason(error)}", "Check the path.")
    return unreadable(path, error)
