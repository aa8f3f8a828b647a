"""Explains, in a person's words, why a text is not TOML.

tomli says at which character it gave up, and which rule of the grammar failed. `explain` looks at
the line there for the mistakes that people make, and says what to write instead.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

import msgspec

from fledge.project.positions import Keys, named_keys
from fledge.project.values import quoted_key

MAX_SHOWN = 80
"""Maximum characters of a line in a message."""

MAX_LINE = 1000
"""Maximum characters of a line that are looked at, because patterns may try every pair of them."""

_FOREIGN = (
    (r"[\[{]\s*[\[{\"]", "JSON"),
    (r"<[!?a-zA-Z]", "HTML or XML"),
    (r"FROM\s", "a Dockerfile"),
    (r"---\s|%YAML|[-\w. ]+:(\s|\Z)|\"[^\"\n]+\"\s*:", "YAML"),
)
"""Patterns of what a file of another format begins with, and the format."""

_BEGINNING = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n)*[ \t]*([^#\s][^\n]{0,80}\n?[^\n]{0,80})")
"""The first line of a text that is not empty and no comment, with some of the next line."""

_STATEMENT = re.compile(r"^[ \t]*(\"[^\"\n]*\"|'[^'\n]*'|[\w.-]+)[ \t]*=", re.MULTILINE)

_LINE = re.compile(
    r"""\s* (?P<key> (?=\S) (?: "[^"]*" | '[^']*' | [^"'=\[\]{}\#] )+? ) \s* = \s*
    (?P<value> (?P<string> "(?:[^"\\]|\\.)*" | '[^']*' )? .* )""",
    re.VERBOSE,
)
"""A line that sets a key."""

_COMMENT = re.compile(r"(?:^|\s)(?:#|//).*|[;,]?\s*$")
"""What follows a value without quotes and does not belong to it."""

_QUOTES = {
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u301d\u301e\uff02", '"'),
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u0060\u00b4\uff07", "'"),
}
"""Characters that are no quotes in TOML, by the one to write instead."""

_ALONE = "write = alone between key and value"
_ESCAPE = "a \\ in \"…\" begins an escape; write / in a path, or '…' around other text"

_BARE_VALUES = (
    ("[=>].*", _ALONE),
    ("", '{key} has no value; write it behind =, in quotes if it is text: "…"'),
    ("(?i:true|yes|on)", "{given}: write true"),
    ("(?i:false|no|off)", "{given}: write false"),
    ("(?i:none|null|nil)", "{given}: there is no such value; remove the line"),
    (r"\$.*", "{given}: text needs quotes, and only a few keys expand variables"),
    ("[0-9]{1,3}([,' ][0-9]{3})+", "{given}: write {digits}, without separators"),
    ("0[0-9]+", "{given}: write {digits}, without zeros before it"),
    (
        "[0-9][0-9.]* *([kKmMgGtT]i?[bB]?|[bB])",
        "{given}: write the number alone; the name of the key says the unit",
    ),
    ('.*["\\\\].*', "text needs quotes: {key} = '{value}'"),
    (".*", 'text needs quotes: {key} = "{value}"'),
)
"""Patterns of values that are neither text in quotes, lists nor tables, and their explanations."""

_STATEMENTS = (
    (r"(;|//|/\*|--).*", "a comment begins with #"),
    ("- .*", 'a list of YAML; write key = "value" on each line'),
    (r"[\w.-]+\s*\{", "write [{key}] on a line, and its keys below it"),
    (r"[^=]*\\.*", _ESCAPE),
    (r"[^=]*([:-]=|=>|->).*", _ALONE),
    (r"[^\s\"'\[\]{}=]+\s*=.*", "this key needs quotes: {key} = …"),
    (".*", '{line} is not key = "value"'),
)
"""Patterns of lines that do not set a key, and their explanations."""


class Explanation(msgspec.Struct, frozen=True):
    """What is wrong, and where. Line and column start at 1."""

    message: str
    line: int
    column: int | None = None
    """None: the line as a whole."""


class _Failure(msgspec.Struct, frozen=True):
    """A text, and where tomli gave up."""

    text: str
    """With newlines of one kind."""
    line: int
    column: int
    message: str

    @property
    def start(self) -> int:
        """The offset in the text of the line at which tomli gave up."""
        return sum(len(each) + 1 for each in self.text.split("\n")[: self.line - 1])

    @property
    def content(self) -> str:
        """That line, without what exceeds `MAX_LINE`."""
        return self.text.split("\n")[self.line - 1][:MAX_LINE]

    @property
    def rest(self) -> str:
        """The part of the line that tomli did not accept."""
        return self.content[self.column - 1 :]

    def here(self, message: str) -> Explanation:
        """Explain the character at which tomli gave up."""
        return Explanation(message, self.line, self.column)


def explain(text: str, line: int, column: int, message: str) -> Explanation:
    """Explain why ``text`` is not TOML. The other arguments are those of tomli's error."""
    failure = _Failure(text.replace("\r\n", "\n"), line, column, message)
    return next(found for check in _CHECKS if (found := check(failure)) is not None)


def _foreign_format(failure: _Failure) -> Explanation | None:
    """Recognize a file that is not meant to be TOML."""
    text = failure.text
    if "\0" in text:
        return Explanation("the file is not text: it has NUL characters", failure.line)
    if "\r" in text and "\n" not in text:
        message = "lines end in a carriage return alone; save the file with Unix line ends"
        return Explanation(message, 1)
    beginning = _BEGINNING.match(text)
    if beginning is None or _STATEMENT.search(text):
        return None
    name = next((name for pattern, name in _FOREIGN if re.match(pattern, beginning[1])), None)
    if name is None:
        return None
    line = text.count("\n", 0, beginning.start(1)) + 1
    return Explanation(f'the file is {name}, not TOML, whose lines are key = "value"', line)


def _conflict_marker(failure: _Failure) -> Explanation | None:
    """Recognize a file that git could not merge."""
    if re.match("<{7}|={7}|>{7}", failure.content):
        return Explanation(
            "a conflict marker of git; keep one of the two versions, and remove the markers",
            failure.line,
        )
    return None


def _given_twice(failure: _Failure) -> Explanation | None:
    """Find the first of two tables or values with the same key."""
    if not failure.message.startswith(("Cannot ", "Duplicate ")):
        return None
    accepted = failure.text[: failure.start + failure.column - 1]
    is_header = failure.rest.startswith("]")  # tomli gives up before the end of a header
    found = list(named_keys(accepted + "]" if is_header else accepted))
    first: dict[Keys, int] = {}
    for index, (keys, _) in enumerate(found):
        for depth in range(1, len(keys) + 1):
            first.setdefault(keys[:depth], index)
    # The value of the key may have keys itself, in an inline table.
    for index, (keys, position) in reversed([*enumerate(found)]):
        if first[keys] < index:
            line = found[first[keys]][1].line
            name = f"[{_path(keys)}]" if is_header else _path(keys)
            remedy = "put all its keys below the first" if is_header else "keep one of the two"
            message = f"{name} is given twice, first on line {line}; {remedy}"
            return Explanation(message, position.line)
        if position.line < failure.line:
            break
    keys, position = found[-1]
    parents = [
        keys[:depth] for depth in range(1, len(keys)) if first[keys[:depth]] < len(found) - 1
    ]
    if not parents:
        return None
    above = parents[-1]
    message = f"{_path(above)} is complete on line {found[first[above]][1].line}"
    return Explanation(f"{message}; write {_path(keys)} there", position.line)


def _unclosed(failure: _Failure) -> Explanation | None:
    """Find where something begins that has no end."""
    closing = {"Unclosed array": "]", "Unclosed inline table": "}"}.get(failure.message)
    if closing:
        end = failure.start + failure.column - 1
        keys, position = list(named_keys(failure.text[:end]))[-1]
        return Explanation(f"{_path(keys)}: a {closing} is missing at the end", position.line)
    if failure.message == "Unterminated string":
        start = max(failure.text.rfind('"""'), failure.text.rfind("'''"))
        quotes = failure.text[start : start + 3]
        if start >= 0 and failure.text.count(quotes) % 2:
            line = failure.text.count("\n", 0, start) + 1
            return Explanation(f"the {quotes} has no closing {quotes}", line)
    return None


def _odd_character(failure: _Failure) -> Explanation | None:
    """Name a character that TOML does not know there, and that looks like one that it knows."""
    character = failure.rest[:1]
    if character in _QUOTES:
        name = "a backtick" if character == "`" else f"{character} is a curly quote"
        return failure.here(f"{name}; write a straight one: {_QUOTES[character]}")
    if not character or character.isascii():
        return None
    name = unicodedata.name(character, "a character").lower()
    shown = f"{name} (U+{ord(character):04X})"
    plain = unicodedata.normalize("NFKC", character)
    if character.isspace() or unicodedata.category(character) == "Cf":
        remedy = "type a plain space there" if character.isspace() else "remove it"
        return failure.here(f"an invisible character, {shown}; {remedy}")
    if plain.isascii() and not plain.isalnum():
        return failure.here(f"{shown}; write {plain}")
    if character.isalnum() and "=" not in failure.content[: failure.column - 1]:
        return failure.here(f"{character} in a key needs quotes around the key")
    return None


def _header(failure: _Failure) -> Explanation | None:
    """Explain a line that begins with a bracket, and so names a table."""
    content = failure.content.strip()
    if not content.startswith("[") or "=" in content:
        return None
    header = re.match(r"\[+\s*([^\]#]*)(\]*)", content)
    name = header[1].strip() if header else ""
    if re.fullmatch(r"[\w.-]+", name) and header and header[2]:
        return failure.here(f"only a comment may follow [{_shown(name)}] on its line")
    wanted = name if re.fullmatch(r"[\w.-]*", name) else quoted_key(name.strip("\"'"))
    return failure.here(
        f"a table begins with its name in brackets, alone on a line: [{_shown(wanted or 'name')}]"
    )


def _value(failure: _Failure) -> Explanation | None:
    """Explain the value of a line ``key = value``."""
    match = _LINE.match(failure.content)
    if not match or failure.column - 1 < match.end("key"):
        return None
    key, value = match["key"], match["value"]
    if match["string"]:
        return _text(failure, key, match.end("string"))
    if value[:1] in ('"', "'"):
        odd = next((each for each in value[1:] if each in _QUOTES), None)
        if odd is None:
            return failure.here(f"{_shown(key)}: the {value[0]} has no closing {value[0]}")
        message = f"{_shown(key)}: a curly quote ({odd}) does not close the text; write {value[0]}"
        return Explanation(message, failure.line, match.start("value") + value.index(odd) + 1)
    if value[:1] in ("[", "{"):
        return None
    return failure.here(_bare_value(key, _COMMENT.sub("", value)))


def _text(failure: _Failure, key: str, end: int) -> Explanation:
    """Explain a line whose value is text in quotes, which ends at column ``end``."""
    if failure.column - 1 < end:
        if "\\" in failure.content:
            return failure.here(f"{_shown(key)}: {_ESCAPE}")
        return failure.here(f"{_shown(key)}: a control character in text; remove it")
    rest = failure.content[end:].strip()
    if rest[:1] in ('"', "'"):
        return failure.here(f"{_shown(key)}: a quote too many; write '…' around text with quotes")
    if rest.startswith("//"):
        return failure.here("a comment begins with #")
    if _STATEMENT.match(rest):
        return failure.here(f"{_shown(rest)} needs a line of its own")
    return failure.here(f"remove {_shown(rest)} at the end of the line")


def _bare_value(key: str, value: str) -> str:
    """Explain a value that is neither text in quotes, list nor table."""
    if value.startswith("/") and key[0] not in "\"'":
        key = quoted_key(key)
    message = next(text for pattern, text in _BARE_VALUES if re.fullmatch(pattern, value))
    return message.format(
        key=_shown(key),
        value=_shown(value),
        given=f"{_shown(key)} = {_shown(value)}",
        digits=re.sub("[^0-9]", "", value).lstrip("0") or "0",
    )


def _statement(failure: _Failure) -> Explanation | None:
    """Explain a line that does not set a key."""
    content = failure.content.strip()
    if failure.rest.lstrip().startswith(":") and not failure.rest.startswith(":="):
        return failure.here('write = for : , and text in quotes: key = "value"')
    if content.count('"') % 2:
        return failure.here('a " has no closing "')
    key, equals, _ = failure.content.partition("=")
    if not content or (equals and failure.column - 1 > len(key)):
        return None
    message = next(text for pattern, text in _STATEMENTS if re.fullmatch(pattern, content))
    name = quoted_key(key.strip(" \t{"))
    return failure.here(message.format(key=_shown(name), line=_shown(content)))


def _by_tomli(failure: _Failure) -> Explanation:
    """Return tomli's own words."""
    message = failure.message[:1].lower() + failure.message[1:]
    return failure.here(f"this is not TOML: {_shown(message)}")


def _path(keys: Keys) -> str:
    return _shown(".".join(map(quoted_key, keys)))


def _shown(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


_CHECKS: tuple[Callable[[_Failure], Explanation | None], ...] = (
    _foreign_format,
    _conflict_marker,
    _given_twice,
    _unclosed,
    _odd_character,
    _header,
    _value,
    _statement,
    _by_tomli,
)
"""The first that knows an explanation gives it."""
