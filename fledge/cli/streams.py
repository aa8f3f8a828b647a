"""Prepares standard input, output and error for whatever they are: closed, full, a pipe, ASCII."""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO

ASCII = {"→": "->", "…": "...", "✓": "ok", "✗": "failed", "·": "-"}
"""What stands for fledge's own characters where the encoding lacks them."""

ERRORS = "fledge"
"""The name of `_replace`, for codecs."""


class OutputError(Exception):
    """Standard output cannot be written. ``__cause__`` is the `OSError`."""


def prepare_streams() -> None:
    """Replace the streams of this process.

    A closed one becomes ``/dev/null``: the next file to be opened would get its descriptor. An
    error of standard output is an `OutputError`; one of standard error is ignored, because a
    build need not fail when nobody hears of it. No character is an error.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest descriptor that is free
    codecs.register_error(ERRORS, _replace)
    sys.stdout = _text(_Output(1), sys.stdout)
    sys.stderr = _text(_ErrorOutput(2), sys.stderr)


def _text(raw: io.FileIO, old: TextIO | None) -> io.TextIOWrapper:
    encoding = old.encoding if old else "utf-8"
    is_error = isinstance(raw, _ErrorOutput)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding,
        ERRORS,
        line_buffering=is_error or raw.isatty(),
    )


class _Output(io.FileIO):
    """Standard output. After its first error it takes everything and writes nothing."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._broken = False

    def write(self, data: Any) -> int:
        if self._broken:
            return memoryview(data).nbytes
        try:
            while (count := super().write(data)) is None:
                # Another program has made the pipe non-blocking.
                select.select([], [self], [])
            return count
        except OSError as error:
            self._broken = True
            raise OutputError from error


class _ErrorOutput(_Output):
    """Standard error, whose errors nobody can be told of."""

    def write(self, data: Any) -> int:
        with suppress(OutputError):
            return super().write(data)
        return memoryview(data).nbytes


def _replace(error: UnicodeError) -> tuple[bytes, int]:
    """Encode what the encoding of a stream lacks.

    Bytes of a path that are no text stay as they are. `ASCII` characters have a spelling, all
    others become escapes.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return b"".join(map(_encoded, characters)), error.end


def _encoded(character: str) -> bytes:
    if "\udc80" <= character <= "\udcff":
        return character.encode("ascii", "surrogateescape")
    return ASCII.get(character, character).encode("ascii", "backslashreplace")
