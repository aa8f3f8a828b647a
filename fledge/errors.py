"""What can go wrong, as exceptions that a person can act on.

Each error says what happened and where (file and key, URL, path in the image) in its
message, and what to do about it in its hint. The exit code of the command line follows
from the class.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class FledgeError(Exception):
    """Any failure that fledge explains. ``hint`` says what to do; it may be empty."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(FledgeError):
    """The command line, ``fledge.toml`` or a file that it names is wrong."""

    exit_code = 2


class NetworkError(FledgeError):
    """A server cannot be reached, or does not give what it was asked for."""

    exit_code = 3


class CorruptError(FledgeError):
    """An input is not what it claims to be: wrong checksum, truncated, malformed."""

    exit_code = 4


class HostError(FledgeError):
    """This machine lacks a tool or a privilege."""

    exit_code = 5


class MalformedError(Exception):
    """Bytes or text that break the rules of their format.

    What reads a format raises it and says what is wrong; the caller knows which file, layer or
    URL it was, and turns it into a `CorruptError` or `ConfigError` in words of its own.
    """


def reason(error: OSError) -> str:
    """Why the host refused, in the words of its own."""
    if isinstance(error, FileNotFoundError):
        return "no such file or folder"
    return (error.strerror or str(error)).lower()


def unreadable(path: Path, error: OSError) -> FledgeError:
    """The error of a file of this machine that could not be read."""
    return FledgeError(f"{path} could not be read: {reason(error)}")
