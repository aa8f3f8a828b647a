"""Decides which files of a folder a Dockerfile can see, by a ``.dockerignore``.

The rules: docs.docker.com, "Build context", "Syntax" of .dockerignore files, and the package
moby/patternmatcher (Pattern.compile, MatchesUsingParentResults), which BuildKit has. Patterns are
those of Go's filepath.Match, and ``**`` stands for any number of folders. A pattern that matches a
folder matches all in it. The last pattern that matches a path counts, and one that begins with
``!`` takes it in again.

Builders of other versions read the same patterns in other ways. So none gets them, but lines that
`excluding` makes, which all read alike.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence

import msgspec

from fledge.errors import MalformedError

SUFFIXES = (".dockerignore", ".containerignore")

CONTROL = "[^ -~\x80-\U0010ffff]"
"""A pattern that matches any control character, and has none: lines and HTTP headers, in which
BuildKit sends patterns, cannot have them."""

Matches = tuple[bool, ...]
"""Which of the patterns match a path or one of its parents, as far as they count there."""


class Pattern(msgspec.Struct, frozen=True):
    """One line of a ``.dockerignore``."""

    is_exception: bool
    """Whether the line begins with ``!``."""
    expression: re.Pattern[str]
    """Matches the whole path, relative to the folder."""


def parse(text: str) -> list[Pattern]:
    """Parse the lines of a ``.dockerignore``. Raises `MalformedError` that begins with the line."""
    patterns = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        if line.startswith("#") or not line.strip():
            continue
        try:
            patterns.append(_parse_line(line.strip()))
        except MalformedError as error:
            raise MalformedError(f"{number}: {line.strip()!r} is no pattern: {error}") from error
    return patterns


def _parse_line(line: str) -> Pattern:
    is_exception = line.startswith("!")
    text = line.removeprefix("!").strip() if is_exception else line
    if not text:
        raise MalformedError("nothing follows !")
    text = posixpath.normpath(text).lstrip("/") or "/"
    try:
        return Pattern(is_exception, re.compile(_expression(text), re.DOTALL))
    except re.error as error:  # a range such as z-a
        raise MalformedError("syntax error in pattern") from error


def excluding(path: str) -> str:
    """Return the line that excludes one path and all below, whatever characters are in it.

    Builders translate it to a regular expression of Go, and not all escape what is special there.
    One control character stands for all of them.
    """
    escaped = re.sub(r"\A[!#]|[\\*?\[\]^$+(){}|]", r"\\\g<0>", path)
    escaped = re.sub(r"[\x00-\x1f\x7f]", CONTROL, escaped)
    return re.sub(r"\A[\s\ufeff]|\s\Z", r"[\g<0>]", escaped)  # which builders strip


def matches(patterns: Sequence[Pattern], path: str, of_parent: Matches) -> Matches:
    """Return which patterns match a path. ``of_parent`` is the answer for its folder.

    A pattern that would change nothing is not tried, so that what is below does not inherit it.
    """
    found: list[bool] = []
    excluded = False
    for pattern, above in zip(patterns, of_parent, strict=True):
        matched = above or (
            pattern.is_exception == excluded and pattern.expression.fullmatch(path) is not None
        )
        if matched:
            excluded = not pattern.is_exception
        found.append(matched)
    return tuple(found)


def is_excluded(patterns: Iterable[Pattern], found: Matches) -> bool:
    """Return whether a path is left out; ``found`` says which patterns match it."""
    excluded = False
    for pattern, matched in zip(patterns, found, strict=True):
        if matched:
            excluded = not pattern.is_exception
    return excluded


def _expression(pattern: str) -> str:
    """Translate a pattern to a regular expression. Raises `MalformedError`."""
    if re.fullmatch(r"\*\*[^*?\[\]\\/][^*?\[\]\\]*", pattern):
        return f".*{re.escape(pattern[2:])}"  # only here, ** ends within a name
    parts = []
    position = 0
    while position < len(pattern):
        found = _SYMBOL.match(pattern, position)
        if found is None:
            raise MalformedError(f"syntax error in pattern at {pattern[position:]!r}")
        symbol, position = found[0], found.end()
        if symbol == "**" and position < len(pattern):
            symbol = "**/"  # not at the end it stands for whole folders
        if symbol in _WILD:
            parts.append(_WILD[symbol])
        elif found["class"]:
            parts.append(_class(found["class"]))
        else:
            parts.append(re.escape(symbol[-1]))  # without the \ that escapes it
    return "".join(parts)


_MEMBER = r"(?:\\.|[^\\\]\-])"
_CLASS = rf"\[(?P<class>(?:\^|(?!\^))(?:{_MEMBER}(?:-{_MEMBER})?)+)\]"
_SYMBOL = re.compile(rf"\*\*/|\*\*|[*?]|{_CLASS}|\\.|[^\\\[]", re.DOTALL)
_WILD = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def _class(members: str) -> str:
    """Translate what is between brackets, which has no classes in it, and no set operations."""
    negation = "^" if members.startswith("^") else ""
    parts = re.findall(r"\\.|.", members[len(negation) :], re.DOTALL)
    inside = "".join(each if each == "-" else re.escape(each[-1]) for each in parts)
    return f"[{negation}{inside}]"
