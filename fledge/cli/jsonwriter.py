"""Writes a JSON object with lists that are too long for memory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from types import TracebackType
from typing import TextIO

INDENT = 2
"""Spaces of indentation for each level."""


class ObjectWriter:
    """Writes a JSON object member by member. Leaving the context closes the object.

        with ObjectWriter(sys.stdout) as writer:
            writer.member("size", 3)
            writer.items("entries", entries)

    The output has the format of `json.dumps` with ``indent=2``, except that each item of a list
    written by `items` is on one line. After an exception the object is not closed, so that nobody
    takes it for complete.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._has_members = False

    def __enter__(self) -> ObjectWriter:
        self._file.write("{")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._file.write("\n}\n" if self._has_members else "}\n")

    def member(self, name: str, value: object) -> None:
        """Write one member."""
        self._begin(name)
        # Newlines in strings are escaped, so every newline here is between two tokens.
        lines = json.dumps(value, indent=INDENT).split("\n")
        self._file.write(self._newline(1).join(lines))

    def items(self, name: str, items: Iterable[object]) -> None:
        """Write one member whose value is a list, item by item."""
        self._begin(name)
        self._file.write("[")
        separator = ""
        end = ""
        for item in items:
            self._file.write(f"{separator}{self._newline(2)}{json.dumps(item)}")
            separator = ","
            end = self._newline(1)
        self._file.write(f"{end}]")

    def _begin(self, name: str) -> None:
        separator = "," if self._has_members else ""
        self._has_members = True
        self._file.write(f"{separator}{self._newline(1)}{json.dumps(name)}: ")

    @staticmethod
    def _newline(level: int) -> str:
        return "\n" + " " * (INDENT * level)
