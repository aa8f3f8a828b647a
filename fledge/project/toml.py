"""Reads TOML files, and collects their problems to report all of them at once.

A `Document` is a parsed file. Code that reads its `Table` reports each problem and continues.
`Document.finish` then raises all problems, in the order of the file and with line numbers.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import tomli

from fledge.errors import ConfigError, reason
from fledge.project.positions import Keys, Position, positions
from fledge.project.syntax import explain
from fledge.project.values import Text, Value, close_match, literal, quoted_key
from fledge.tree.names import printable
from fledge.tree.regular import IrregularFileError, read_regular

MAX_TOML_SIZE = 1 << 20
"""Maximum size of a file in bytes."""

MAX_SHOWN = 80
"""Maximum characters of a key or a wrong value in a message."""

MAX_PROBLEMS = 20
"""Maximum problems in the message of an error."""


T = TypeVar("T")


class Problem(msgspec.Struct, frozen=True):
    """One problem of a file."""

    message: str
    """Begins with the table and key, if it concerns one: ``[agent] path = "x": …``."""
    line: int | None = None
    """The line, starting at 1. None if the text is not known, or if a whole table is missing."""
    column: int | None = None
    """The column, starting at 1. None except for syntax errors."""
    origin: str | None = None
    """The option that has set the value; None: the file."""

    def shown(self, path: Path) -> str:
        """Format the problem like a compiler: ``fledge.toml:5: …``. Safe to print on a terminal."""
        if self.origin:
            return printable(f"{self.origin}: {self.message}")
        position = [str(number) for number in (self.line, self.column) if number is not None]
        return printable(": ".join([":".join([str(path), *position]), self.message]))


class InvalidConfig(ConfigError):
    """A file is invalid. Lists all its problems."""

    def __init__(self, path: Path, problems: Sequence[Problem]) -> None:
        """``problems`` are in the order of display. The message has the first `MAX_PROBLEMS`."""
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        if len(problems) > MAX_PROBLEMS:
            count += f", of which these are the first {MAX_PROBLEMS}"
        details = [problem.shown(path) for problem in problems[:MAX_PROBLEMS]]
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
        self.origins: dict[Keys, str] = {}
        """The options that have set values, such as ``--set agent.version``."""
        self.variables: dict[Keys, list[str]] = {}
        """The variables of the environment that are part of a value."""
        self.settled: set[Keys] = set()
        """Keys with a problem that makes any further one of no interest."""
        self.included: dict[str, Document] = {}
        """Documents whose content is a table of this one."""
        self._text = text
        self._reports: list[tuple[Keys, str]] = []

    def report(self, keys: Keys, message: str) -> None:
        """Report a problem of the value at ``keys``, which need not exist."""
        if keys not in self.settled:
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
        key_positions = self.positions()
        problems = []
        for keys, message in self._reports:
            position = _nearest(keys, key_positions)
            origin = _nearest(keys, self.origins)
            line = position.line if position else None
            problems.append((position or (0, 0), Problem(message, line, origin=origin)))
        problems.sort(key=lambda problem: problem[0])
        return InvalidConfig(self.path, [problem for _, problem in problems])

    def positions(self) -> dict[Keys, Position]:
        """Return the positions of all keys. Empty if the text is not known."""
        return {} if self._text is None else positions(self._text)


def _nearest(keys: Keys, found: Mapping[Keys, T]) -> T | None:
    """Return what there is for a key, or else for the innermost table around it that has any."""
    prefixes = (keys[:depth] for depth in range(len(keys), 0, -1))
    return next((found[each] for each in prefixes if each in found), None)


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
        return ".".join(map(_shown_key, self.keys))

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

    def reject_unknown(
        self, known: Collection[str], places: Mapping[str, str] | None = None
    ) -> None:
        """Report every key that is not in ``known``.

        ``places`` says where keys of other tables belong, in words that follow "belongs".
        """
        places = places or {}
        for number, key in enumerate(key for key in self.data if key not in known):
            if number >= MAX_PROBLEMS:  # not shown, and to look for a similar key takes long
                remedy = ""
            elif key in places:
                remedy = f": it belongs {places[key]}"
            elif close := close_match(key, known):
                remedy = f": did you mean {close}?"
            else:
                remedy = f": known here: {', '.join(sorted(known))}"
            self.document.report((*self.keys, key), f"{self._full_key(key)} is unknown{remedy}")

    def table(self, key: str) -> Table:
        """Return the table at ``key``; an empty one if it is missing. Reports a value of another
        type.
        """
        keys = (*self.keys, key)
        data = self.data.get(key, {})
        if not isinstance(data, dict):
            header = f"[{'.'.join(map(_shown_key, keys))}]"
            self.report_value(
                key, f"must be a table: {header} on a line, its keys on the lines below"
            )
            data = {}
        return Table(self.document, keys, data)

    def without(self, keys: Collection[str]) -> Table:
        """Return the table without some keys."""
        data = {key: value for key, value in self.data.items() if key not in keys}
        return Table(self.document, self.keys, data)

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
        self.report_missing(key, f"write {quoted_key(key)} = {value.like()}")
        return None

    def text(self, key: str, example: str) -> str | None:
        """Return the text of a key. Reports a missing or wrong value and returns None."""
        found = self.required(key, Text((example,)))
        return found if isinstance(found, str) else None

    def _full_key(self, key: str) -> str:
        return f"[{self.name}] {_shown_key(key)}" if self.keys else _shown_key(key)


def read(path: Path, if_missing: str) -> Document:
    """Read a file.

    ``if_missing`` is the hint if there is no such file. Raises `InvalidConfig` if it is not valid
    TOML, `ConfigError` if it cannot be read.
    """
    try:
        raw = read_regular(path, MAX_TOML_SIZE + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file", if_missing) from error
    except IrregularFileError as error:
        raise ConfigError(f"{path}: {reason(error)}", if_missing) from error
    except OSError as error:
        raise ConfigError(f"{path}: {reason(error)}") from error
    if len(raw) > MAX_TOML_SIZE:
        raise ConfigError(f"{path} is larger than {MAX_TOML_SIZE} bytes, the limit for this file")
    try:
        text = raw.decode("utf-8-sig")
        return Document(path, tomli.loads(text), text)
    except UnicodeDecodeError as error:
        raise InvalidConfig(path, [_not_utf8(raw, error.start)]) from error
    except tomli.TOMLDecodeError as error:
        found = explain(text, error.lineno, error.colno, error.msg)
        problem = Problem(found.message, found.line, found.column)
        raise InvalidConfig(path, [problem]) from error
    except (RecursionError, ValueError) as error:
        problem = Problem("a number is too long, or values are nested too deep")
        raise InvalidConfig(path, [problem]) from error


def _shown_key(key: str) -> str:
    return quoted_key(key if len(key) <= MAX_SHOWN else key[:MAX_SHOWN] + "…")


def _not_utf8(raw: bytes, start: int) -> Problem:
    """Describe bytes that are not UTF-8 from offset ``start`` on."""
    line = raw.count(b"\n", 0, start) + 1
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return Problem("the file is text in UTF-16; save it as UTF-8", 1)
    if b"\0" in raw:
        return Problem("the file is not text: it has NUL characters", line)
    message = f"the byte 0x{raw[start]:02x} is not UTF-8, as TOML requires; save the file as UTF-8"
    return Problem(message, line)
