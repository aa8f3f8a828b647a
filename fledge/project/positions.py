"""Finds the positions of keys in a TOML text, for messages with line numbers.

tomli returns values without positions. This scanner adds them. It gets only texts that tomli has
accepted, so it need not detect errors, and it skips values without parsing them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import tomli

DEPTH = 8
"""Maximum number of keys in a path. A deeper key has the position of the table at this depth."""

_TOKEN = re.compile(
    r"""
      (?P<skipped> [ \t\r.]+ | \#[^\n]* )
    | (?P<string> \"{3} (?: [^"\\]+ | \\. | \"{1,2}(?!\") )* \"{3,5}
                | '{3} .*? '{3,5}
                | \" (?: [^"\\]+ | \\. )* \"
                | '[^']*' )
    | (?P<mark> [\n\[\]{}=,] )
    | (?P<bare> [^\s\[\]{}=,.\#"']+ )
    """,
    re.VERBOSE | re.DOTALL,
)

_MARKS = "\n[]{}=,"


class Position(NamedTuple):
    """A position in a text. Both numbers start at 1."""

    line: int
    column: int


Keys = tuple[str, ...]
"""The path of keys that leads to a value, from the top-level table."""


def positions(text: str) -> dict[Keys, Position]:
    """Return the position at which a valid TOML text first names each table and key.

    In ``a.b = 1`` both keys have the position of ``a``. Tables in an array share their keys: the
    first table that has a key gives its position.
    """
    result: dict[Keys, Position] = {}
    for keys, position in named_keys(text):
        for depth in range(1, len(keys) + 1):
            result.setdefault(keys[:depth], position)
    return result


def named_keys(text: str) -> Iterator[tuple[Keys, Position]]:
    """Yield the full path of each header and each key of a statement, in the order of the text.

    A key that occurs several times is yielded several times. Paths end at `DEPTH` keys.
    """
    table: Keys = ()  # the current table
    named: Keys = ()  # the key of the current value
    keys: list[str] | None = []  # the keys of the header or statement so far; None: in a value
    start = Position(1, 1)  # the position of these keys
    nesting: list[tuple[str, Keys]] = []  # open brackets in a value, each with its outer table
    for lexeme, position in _tokens(text):
        if lexeme[0] not in _MARKS:
            if keys is not None:
                start = start if keys else position
                keys.append(_key_name(lexeme))
        elif lexeme == "=":
            named, keys = (*table, *(keys or []))[:DEPTH], None
            yield named, start
        elif lexeme in "[{":
            if keys is None:  # otherwise it begins a header
                nesting.append((lexeme, table))
            if lexeme == "{":
                table, keys = named, []
        elif lexeme in "]}":
            if nesting:
                table, keys = nesting.pop()[1], None
            elif keys is not None:
                table, keys = tuple(keys[:DEPTH]), None
                yield table, start
        elif nesting[-1][0] == "{" if nesting else lexeme == "\n":
            keys = []


def _tokens(text: str) -> Iterator[tuple[str, Position]]:
    """Yield the strings, bare words and marks of a text with their positions."""
    line, line_start = 1, 0
    for match in _TOKEN.finditer(text):
        lexeme = match.group()
        if match.lastgroup != "skipped":
            yield lexeme, Position(line, match.start() - line_start + 1)
        if newlines := lexeme.count("\n"):
            line += newlines
            line_start = match.start() + lexeme.rindex("\n") + 1


def _key_name(lexeme: str) -> str:
    """Return the key that a lexeme spells; tomli resolves the escapes."""
    if lexeme[0] not in "\"'":
        return lexeme
    return next(iter(tomli.loads(f"{lexeme} = 0")))
