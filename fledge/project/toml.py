"""Reads TOML files, and collects their problems to report all of them at once.

A `Document` is a parsed file. Code that reads its `Table` reports each problem and continues.
`Document.finish` then raises all problems, in the order of the file and with line numbers.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import msgspec
import tomli

from fledge.errors import ConfigError, reason
from fledge.project.positions import Keys, positions
from fledge.project.values import Text, Value, literal
from fledge.tree.names import printable
from fledge.tree.regular import read_regular

MAX_TOML_SIZE = 1 << 20
"""Maximum size of a file in bytes."""

MAX_SHOWN = 80
"""Maximum characters of a wrong value in a message."""


class Problem(msgspec.Struct, frozen=True):
    """One problem of a file."""

    message: str
    """Begins with the table and key, if it concerns one: ``[agent] path = "x": …``."""
    line: int | None = None
    """The line, starting at 1. None if the text is not known, or if a whole table is missing."""
    column: int | None = None
    """The column, starting at 1. None except for syntax errors."""

    def shown(self, path: Path) -> str:
        """Format the problem like a compiler: ``fledge.toml:5: …``. Safe to print on a terminal."""
        position = [str(number) for number in (self.line, self.column) if number is not None]
        return printable(": ".join([":".join([str(path), *position]), self.message]))


class InvalidConfig(ConfigError):
    """A file is invalid. Lists all its problems."""

    def __init__(self, path: Path, problems: Sequence[Problem]) -> None:
        """``problems`` are in the order of display."""
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        details = [problem.shown(path) for problem in problems]
        super().__init__(f"{printable(str(path))} has {count}:", details=details)
        self.problems = tuple(problems)


class Document:
    """The content of a TOML file, and its problems found so far."""

    def __init__(self, path: Path, data: dict[str, object], text: str | None = None) -> None:
        """``data`` is the parsed ``text``. Without the text, problems have no line numbers.

        Relative paths in the file start at the folder of ``path``.
        """
        self.path = path
        self.top = Table(self, (), data)
        self._text = text
        self._reports: list[tuple[Keys, str]] = []

    def report(self, keys: Keys, message: str) -> None:
        """Report a problem of the value at ``keys``, which need not exist."""
        self._reports.append((keys, message))

    @property
    def has_problems(self) -> bool:
        """Whether a problem was reported."""
        return bool(self._reports)

    def finish(self) -> None:
        """Raise `InvalidConfig` if a problem was reported."""
        if self._reports:
            raise self.error()

    def error(self) -> InvalidConfig:
        """Make an error of all reported problems, in the order of the file."""
        key_positions = {} if self._text is None else positions(self._text)
        problems = []
        for keys, message in self._reports:
            position = next(
                (
                    key_positions[keys[:n]]
                    for n in range(len(keys), 0, -1)
                    if keys[:n] in key_positions
                ),
                None,
            )
            problems.append(
                (position or (0, 0), Problem(message, position.line if position else None))
            )
        problems.sort(key=lambda problem: problem[0])
        return InvalidConfig(self.path, [problem for _, problem in problems])


class Table:
    """A table of a document. Its methods report problems to the document."""

    def __init__(self, document: Document, keys: Keys, data: dict[str, object]) -> None:
        """``keys`` is the path to the table from the top-level table."""
        self.document = document
        self.keys = keys
        self.data = data

    @property
    def name(self) -> str:
        """The name in its header, without brackets. Empty for the top-level table."""
        return ".".join(map(_quoted_key, self.keys))

    @property
    def folder(self) -> Path:
        """The folder at which relative paths start."""
        return self.document.path.parent

    def report(self, message: str) -> None:
        """Report a problem of the whole table."""
        self.document.report(self.keys, f"[{self.name}]: {message}")

    def report_value(self, key: str, message: str) -> None:
        """Report a problem of the value of ``key``."""
        try:
            value = literal(self.data[key])
        except (RecursionError, ValueError):  # nested too deep, or a number with too many digits
            value = "…"
        if len(value) > MAX_SHOWN:
            value = value[:MAX_SHOWN] + "…"
        self.document.report((*self.keys, key), f"{self._full_key(key)} = {value}: {message}")

    def report_missing(self, key: str, message: str) -> None:
        """Report a missing key."""
        self.document.report(self.keys, f"{self._full_key(key)} is missing: {message}")

    def reject_unknown(self, known: Collection[str]) -> None:
        """Report every key that is not in ``known``."""
        for key in [key for key in self.data if key not in known]:
            close = difflib.get_close_matches(key, known, n=1)
            remedy = (
                f"did you mean {close[0]}?" if close else f"known here: {', '.join(sorted(known))}"
            )
            self.document.report((*self.keys, key), f"{self._full_key(key)} is unknown: {remedy}")

    def table(self, key: str) -> Table:
        """Return the table at ``key``; an empty one if it is missing. Reports a value of another
        type.
        """
        keys = (*self.keys, key)
        data = self.data.get(key, {})
        if not isinstance(data, dict):
            header = f"[{'.'.join(map(_quoted_key, keys))}]"
            self.report_value(
                key, f"must be a table: {header} on a line, its keys on the lines below"
            )
            data = {}
        return Table(self.document, keys, data)

    def tables(self) -> Iterator[tuple[str, Table]]:
        """Yield each key with its table. Reports values of other types."""
        for key in self.data:
            yield key, self.table(key)

    def value(self, key: str, value: Value) -> object | None:
        """Return the typed value of an existing key. Reports a wrong value and returns None."""
        try:
            found: object = value.read(self.data[key], self.folder)
            return found
        except ValueError as error:
            self.report_value(key, str(error))
            return None

    def required(self, key: str, value: Value) -> object | None:
        """Return the typed value of a key. Reports a missing or wrong value and returns None."""
        if key in self.data:
            return self.value(key, value)
        self.report_missing(key, f"write {_quoted_key(key)} = {value.like()}")
        return None

    def text(self, key: str, example: str) -> str | None:
        """Return the text of a key. Reports a missing or wrong value and returns None."""
        found = self.required(key, Text((example,)))
        return found if isinstance(found, str) else None

    def _full_key(self, key: str) -> str:
        return f"[{self.name}] {_quoted_key(key)}" if self.keys else _quoted_key(key)


def read(path: Path, if_missing: str) -> Document:
    """Read a file.

    ``if_missing`` is the hint if the file does not exist. Raises `InvalidConfig` if it is not valid
    TOML, `ConfigError` if it cannot be read.
    """
    try:
        raw = read_regular(path, MAX_TOML_SIZE + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file", if_missing) from error
    except OSError as error:
        raise ConfigError(f"{path}: {reason(error)}") from error
    if len(raw) > MAX_TOML_SIZE:
        raise ConfigError(f"{path} is larger than {MAX_TOML_SIZE} bytes, the limit for this file")
    try:
        text = raw.decode("utf-8-sig")
        return Document(path, tomli.loads(text), text)
    except UnicodeDecodeError as error:
        problem = Problem(
            "the file is not UTF-8 text, as TOML requires", raw.count(b"\n", 0, error.start) + 1
        )
        raise InvalidConfig(path, [problem]) from error
    except tomli.TOMLDecodeError as error:
        problem = Problem(f"TOML syntax: {error.msg}", error.lineno, error.colno)
        raise InvalidConfig(path, [problem]) from error
    except (RecursionError, ValueError) as error:
        problem = Problem("a number is too long, or values are nested too deep")
        raise InvalidConfig(path, [problem]) from error


def _quoted_key(key: str) -> str:
    """Return a key in TOML, quoted if necessary."""
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)
