"""Decides which files of a folder a Dockerfile can see, by a ``.dockerignore``.

The rules: docs.docker.com, "Build context", "Syntax" of .dockerignore files, and the package
moby/patternmatcher, which builders share. Patterns are those of Go's filepath.Match, and ``**``
stands for any number of folders. A pattern that matches a folder matches all in it. The last
pattern that matches a path counts, and one that begins with ``!`` takes it in again.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence

import msgspec

from fledge.errors import MalformedError

SUFFIX = ".dockerignore"

Matches = tuple[bool, ...]
"""Which of the patterns match a path or one of its parents."""


class Pattern(msgspec.Struct, frozen=True):
    """One line of a ``.dockerignore``."""

    text: str
    """The pattern without ``!`` and a leading slash, as Go's path.Clean writes it."""
    is_exception: bool
    """Whether the line begins with ``!``."""
    expression: re.Pattern[str]
    """Matches the whole path, relative to the folder."""

    def __str__(self) -> str:
        return f"!{self.text}" if self.is_exception else self.text


def parse(text: str) -> list[Pattern]:
    """Parse the lines of a ``.dockerignore``. Raises `MalformedError` that begins with the line."""
    patterns = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        if line.startswith("#") or not line.strip():
            continue
        try:
            patterns.append(_parse_line(line.strip()))
        except (MalformedError, re.error) as error:
            raise MalformedError(f"{number}: {line.strip()!r} is no pattern: {error}") from error
    return patterns


def _parse_line(line: str) -> Pattern:
    is_exception = line.startswith("!")
    text = line.removeprefix("!").strip() if is_exception else line
    if not text:
        raise MalformedError("nothing follows !")
    text = posixpath.normpath(text).lstrip("/") or "/"
    return Pattern(text, is_exception, re.compile(_expression(text), re.DOTALL))


def excluding(path: str) -> str:
    """Return the line that excludes one path, whatever characters are in it."""
    escaped = re.sub(r"([\\*?\[\]])", r"\\\1", path)
    escaped = re.sub(r"\A\s|[\r\n]|\s\Z", "?", escaped)  # which a line cannot have
    return rf"\{escaped}" if escaped.startswith(("!", "#")) else escaped


def matches(patterns: Sequence[Pattern], path: str, of_parent: Matches) -> Matches:
    """Return which patterns match a path. ``of_parent`` is the answer for its folder."""
    return tuple(
        above or pattern.expression.fullmatch(path) is not None
        for pattern, above in zip(patterns, of_parent, strict=True)
    )


def is_excluded(patterns: Iterable[Pattern], found: Matches) -> bool:
    """Return whether a path is left out; ``found`` says which patterns match it."""
    excluded = False
    for pattern, matched in zip(patterns, found, strict=True):
        if matched:
            excluded = not pattern.is_exception
    return excluded


def _expression(pattern: str) -> str:
    """Translate a pattern to a regular expression. Raises `MalformedError`."""
    parts = []
    position = 0
    while position < len(pattern):
        found = _SYMBOL.match(pattern, position)
        if found is None:
            problem = "a [ without ]" if pattern[position] == "[" else "a \\ at the end"
            raise MalformedError(problem)
        symbol, position = found[0], found.end()
        if symbol == "**" and position < len(pattern) and found.start() > 0:
            symbol = "**/"  # in the middle it stands for whole folders, like **/
        if symbol in _WILD:
            parts.append(_WILD[symbol])
        elif found["class"]:
            parts.append(_class(found["class"]))
        else:
            parts.append(re.escape(symbol[-1]))  # without the \ that escapes it
    return "".join(parts)


_SYMBOL = re.compile(r"\*\*/|\*\*|[*?]|\[(?P<class>\^?(?:\\.|[^\\\]])+)\]|\\.|[^\\\[]", re.DOTALL)
_WILD = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def _class(members: str) -> str:
    """Translate what is between brackets, which has no classes in it, and no set operations."""
    negation = "^" if members.startswith("^") else ""
    parts = re.findall(r"\\.|.", members[len(negation) :], re.DOTALL)
    inside = "".join(each if each == "-" else re.escape(each[-1]) for each in parts)
    return f"(?!/)[{negation}{inside}]"
