"""The types of values in a TOML file."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import msgspec

from fledge.errors import ConfigError, MalformedError, reason
from fledge.oci import reference
from fledge.oci.reference import Reference
from fledge.sources.hostpath import why_missing
from fledge.tree.digest import Digest
from fledge.tree.regular import check_regular

MAX_NATURAL = (1 << 63) - 1
"""The largest integer that every TOML parser must accept (TOML v1.0.0, Integer)."""

MAX_WORD = 100
"""Maximum characters of a word that is compared with known words."""

_PORT = "0*(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_HOST = r"(?:\[[0-9a-fA-F:.]+(?:%[A-Za-z0-9._~-]+)?\]|[^\s/?#@:\[\]]+)"
ANY_TEXT = r"^[^\u0000]*[^\s\u0000][^\u0000]*$"
"""The pattern of text that is neither blank nor has a NUL."""


class Value(msgspec.Struct, frozen=True):
    """A type of value. Patterns use only syntax that Python and JSON Schema share."""

    examples: tuple[object, ...] = ()
    """Examples of values, as parsed from TOML."""
    example: ClassVar[str] = '"…"'
    """The placeholder in messages if there are no examples, in TOML."""
    typed: ClassVar[Any] = None
    """The type, or union of types, that `read` returns. None: a text, number or boolean."""

    def read(self, value: object, folder: Path) -> Any:
        """Convert a value parsed from TOML. Relative paths start at ``folder``.

        Raises `ValueError`, which says what the value must be.
        """
        raise NotImplementedError

    def accepts(self, value: object) -> bool:
        """Return whether `read` accepts a value, in a folder without files."""
        try:
            self.read(value, Path())
        except ValueError:
            return False
        return True

    def check(self, value: object) -> None:
        """Check a value that was not read from TOML. Raises `ValueError` as `read` does."""
        if self.typed is None:
            self.read(value, Path())
        elif not isinstance(value, self.typed):
            raise ValueError(f"must be {self.describe()}, as a {self.typed}")

    def json_schema(self) -> dict[str, object]:
        """Return a JSON Schema of the values that `read` accepts."""
        raise NotImplementedError

    def describe(self) -> str:
        """Return the name of the type in the reference."""
        raise NotImplementedError

    def like(self) -> str:
        """Return the examples in TOML: ``"a" or "b"``."""
        return " or ".join(map(literal, self.examples)) or self.example


class Text(Value, frozen=True):
    """Text that is not blank."""

    def read(self, value: object, folder: Path) -> Any:
        """Return the text. Refuses blank text and NUL."""
        if isinstance(value, str) and value.strip() and "\0" not in value:
            return value
        raise ValueError(f"must be text in quotes, such as {self.like()}")

    def json_schema(self) -> dict[str, object]:
        """Return a string that is not blank."""
        return {"type": "string", "pattern": ANY_TEXT}

    def describe(self) -> str:
        """Return ``text``."""
        return "text"


class Formed(Text, frozen=True, kw_only=True):
    """Text of a certain form."""

    pattern: str

    def read(self, value: object, folder: Path) -> str:
        """Return the text. Refuses what does not match the pattern."""
        text: str = super().read(value, folder)
        if re.search(self.pattern, text) and not text.endswith("\n"):
            return text
        raise ValueError(f"must be like {self.like()}")

    def json_schema(self) -> dict[str, object]:
        """Return a string that matches the pattern."""
        return {"type": "string", "pattern": self.pattern}

    def describe(self) -> str:
        """Return the examples."""
        return f"text like {' or '.join(f'`{literal(each)}`' for each in self.examples)}"


class Choice(Value, frozen=True, kw_only=True):
    """One of several texts."""

    options: tuple[str, ...]
    """The texts to choose from."""

    def like(self) -> str:
        """Return all options in TOML."""
        return " or ".join(map(literal, self.options))

    def read(self, value: object, folder: Path) -> str:
        """Return the option."""
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"must be text in quotes, such as {self.like()}")
        if value in self.options:
            return value
        if len(self.options) == 1:
            raise ValueError(f"this version of fledge supports only {self.like()}")
        close = close_match(value, self.options)
        raise ValueError(f"did you mean {literal(close)}?" if close else f"must be {self.like()}")

    def json_schema(self) -> dict[str, object]:
        """Return an enumeration."""
        return {"enum": list(self.options)}

    def describe(self) -> str:
        """List the options."""
        *first, last = (f"`{literal(option)}`" for option in self.options)
        return f"{', '.join(first)} or {last}" if first else last


class Choices(Value, frozen=True, kw_only=True):
    """A list of some of several texts, each at most once."""

    options: tuple[str, ...]
    """The texts to choose from."""
    typed: ClassVar[Any] = tuple

    def read(self, value: object, folder: Path) -> tuple[str, ...]:
        """Return the options."""
        if not isinstance(value, list) or not value:
            raise ValueError(f"must be a list of texts, such as {self.like()}")
        choice = Choice(options=self.options)
        found = tuple(choice.read(each, folder) for each in value)
        if len(set(found)) < len(found):
            raise ValueError("has one of its texts twice")
        return found

    def json_schema(self) -> dict[str, object]:
        """Return an array of an enumeration."""
        items = {"enum": list(self.options)}
        return {"type": "array", "items": items, "minItems": 1, "uniqueItems": True}

    def describe(self) -> str:
        """List the options."""
        return f"a list, each text of which is {Choice(options=self.options).describe()}"


class Boolean(Value, frozen=True):
    """True or false."""

    example: ClassVar[str] = "true"

    def read(self, value: object, folder: Path) -> bool:
        """Return the boolean."""
        if isinstance(value, bool):
            return value
        raise ValueError("must be true or false, without quotes")

    def json_schema(self) -> dict[str, object]:
        """Return a boolean."""
        return {"type": "boolean"}

    def describe(self) -> str:
        """List both values."""
        return "`true` or `false`"


class Natural(Value, frozen=True, kw_only=True):
    """A whole number from ``least`` to ``most``."""

    least: int = 0
    most: int = MAX_NATURAL
    example: ClassVar[str] = "1"

    def read(self, value: object, folder: Path) -> int:
        """Return the number."""
        number = value if isinstance(value, int) and not isinstance(value, bool) else -1
        if self.least <= number <= self.most:
            return number
        wanted = f"a whole number from {self.least} to {self.most}"
        if isinstance(value, str):
            remedy = f"write {value}, " if re.fullmatch("[0-9]{1,20}", value) else "must be "
            raise ValueError(f"{remedy}{wanted}, without quotes or a unit")
        if isinstance(value, float) and value.is_integer():
            raise ValueError(f"write {int(value)}, {wanted}, without a point")
        raise ValueError(f"must be {wanted}")

    def json_schema(self) -> dict[str, object]:
        """Return an integer with bounds."""
        return {"type": "integer", "minimum": self.least, "maximum": self.most}

    def describe(self) -> str:
        """Return the bounds."""
        return f"a whole number from {self.least} to {self.most}"


class Url(Text, frozen=True):
    """An http, https or file URL."""

    example: ClassVar[str] = '"https://example.org/file"'
    pattern: ClassVar[str] = (
        rf"^(?:[Hh][Tt][Tt][Pp][Ss]?://(?:[^\s/?#@]*@)?{_HOST}(?::(?:{_PORT})?)?(?:[/?#]\S*)?"
        r"|file://(?:localhost)?/\S*)$"
    )

    def read(self, value: object, folder: Path) -> str:
        """Return the URL unchanged."""
        text: str = super().read(value, folder)
        try:
            urlsplit(text)  # refuses some URLs that match the pattern
        except ValueError:
            text = ""
        if re.search(self.pattern, text) and not text.endswith("\n"):
            return text
        if isinstance(value, str) and (url := _file_url(folder, value)):
            raise ValueError(f"must be a URL and not a path; write {literal(url)}")
        raise ValueError(
            'must be a URL without spaces that begins with "https://", "http://" or "file:///"'
        )

    def json_schema(self) -> dict[str, object]:
        """A string of that form."""
        return {"type": "string", "pattern": self.pattern}

    def describe(self) -> str:
        """List the schemes."""
        return "a URL (`https://`, `http://` or `file:///`)"


def _file_url(folder: Path, path: str) -> str:
    """Return the URL of a file of this machine; empty if there is no such file."""
    with suppress(OSError, ValueError):  # no file can have that name
        file = (folder / path.removeprefix("file:").removeprefix("//")).resolve()
        return file.as_uri() if file.is_file() else ""
    return ""


class InputFile(Text, frozen=True):
    """A readable regular file."""

    example: ClassVar[str] = '"path/of/the/file"'
    typed: ClassVar[Any] = Path

    def read(self, value: object, folder: Path) -> Path:
        """Return the path; a relative one starts at ``folder``."""
        text: str = super().read(value, folder)
        path = folder / text
        try:
            check_regular(path)
        except FileNotFoundError as error:
            why = why_missing(text)
            where = f"no such file; {why}" if why else f"{path}: {reason(error)}"
            raise ValueError(where) from error
        except OSError as error:
            raise ValueError(f"{path}: {reason(error)}") from error
        if not os.access(path, os.R_OK):
            raise ValueError(f"{path} cannot be read; change its permissions")
        return path

    def describe(self) -> str:
        """Return ``the path of a file``."""
        return "the path of a file"


class InputFolder(Text, frozen=True):
    """A folder whose files can be listed."""

    example: ClassVar[str] = '"path/of/the/folder"'
    typed: ClassVar[Any] = Path

    def read(self, value: object, folder: Path) -> Path:
        """Return the path; a relative one starts at ``folder``."""
        text: str = super().read(value, folder)
        path = folder / text
        if not path.exists():
            why = why_missing(text)
            raise ValueError(f"no such folder; {why}" if why else f"{path}: no such folder")
        if not path.is_dir():
            raise ValueError(f"{path} is not a folder")
        if not os.access(path, os.R_OK | os.X_OK):
            raise ValueError(f"{path} cannot be read; change its permissions")
        return path

    def describe(self) -> str:
        """Return ``the path of a folder``."""
        return "the path of a folder"


class Sha256(Value, frozen=True, kw_only=True):
    """A digest as 64 hexadecimal digits."""

    prefixed: bool | None = None
    """True: ``sha256:HEX`` in lower case; False: bare digits in lower case. None: with or without
    the prefix, in any case, because people write it."""
    typed: ClassVar[Any] = Digest

    def read(self, value: object, folder: Path) -> Digest:
        """Return the digest."""
        text = value if isinstance(value, str) else ""
        try:
            if self.prefixed:
                return Digest.parse(text)
            plain = text if self.prefixed is False else text.lower().removeprefix("sha256:")
            return Digest.from_hex(plain)
        except MalformedError as error:
            raise ValueError(
                "must be sha256: and 64 digits 0-9 or a-f"
                if self.prefixed
                else "must be a sha256: 64 hexadecimal digits, as sha256sum prints it"
            ) from error

    def like(self) -> str:
        """Its form."""
        return '"sha256:…"' if self.prefixed else '"…", its sha256'

    def json_schema(self) -> dict[str, object]:
        """A string of that form."""
        if self.prefixed is None:
            pattern = "^(?:[Ss][Hh][Aa]256:)?[0-9A-Fa-f]{64}$"
        else:
            pattern = f"^{'sha256:' if self.prefixed else ''}[0-9a-f]{{64}}$"
        return {"type": "string", "pattern": pattern}

    def describe(self) -> str:
        """Its form."""
        return "a sha256: 64 hexadecimal digits, as `sha256sum` prints it"


class Sha256List(Value, frozen=True):
    """A list of digests, ``sha256:HEX`` each."""

    example: ClassVar[str] = '["sha256:…"]'
    typed: ClassVar[Any] = tuple

    def read(self, value: object, folder: Path) -> tuple[Digest, ...]:
        """Return the digests."""
        try:
            if not isinstance(value, list):
                raise ValueError("not a list")
            return tuple(Sha256(prefixed=True).read(each, folder) for each in value)
        except ValueError as error:
            raise ValueError(
                "must be a list of texts, each sha256: and 64 digits 0-9 or a-f"
            ) from error

    def json_schema(self) -> dict[str, object]:
        """Return an array of digests."""
        return {"type": "array", "items": Sha256(prefixed=True).json_schema()}

    def describe(self) -> str:
        """Return the form of the list."""
        return "a list of digests, each `sha256:` and 64 hexadecimal digits"


class ImageReference(Text, frozen=True):
    """The name or location of an image."""

    example: ClassVar[str] = '"nginx:alpine"'
    typed: ClassVar[Any] = Reference

    def read(self, value: object, folder: Path) -> Reference:
        """Parse the reference with `reference.parse`."""
        text: str = super().read(value, folder)
        try:
            return reference.parse(text, folder)
        except ConfigError as error:
            why = error.message.partition(": ")[2] or error.message
            raise ValueError(f"{why}. {error.hint}") from error

    def json_schema(self) -> dict[str, object]:
        """Return a string that follows the grammar, without its limits on lengths."""
        component, tag = reference.COMPONENT.pattern, reference.TAG.pattern
        host = rf"(?=localhost/|[^/]*[.:][^/]*/)(?:{reference.HOST.pattern})/"
        path = f"(?:{host})?{component}(?:/{component})*"
        name = f"{path}(?::{tag})?(?:@sha256:[0-9a-f]{{64}})?"
        named, files = "|".join(reference.NAME_TRANSPORTS), "|".join(reference.PATH_TRANSPORTS)
        others = rf"(?:{'|'.join(reference.OTHER_TRANSPORTS)}):(?!{reference.PORT.pattern})"
        return {
            "type": "string",
            "pattern": rf"^(?!{others})(?:(?:{named})?(?!{named}|{files}){name}"
            rf"|(?:{files})(?!\s*$)[^:\u0000]+(?::[^\u0000]+)?)$",
        }

    def describe(self) -> str:
        """Return ``an image reference``."""
        return "an image reference"


class Entries(Value, frozen=True, kw_only=True):
    """A whole table whose keys are free and whose values are text."""

    pattern: str = ANY_TEXT
    """The pattern of the values in the JSON Schema."""
    typed: ClassVar[Any] = tuple

    def example_line(self) -> str:
        """Return an example of the entries in TOML."""
        for example in self.examples:
            if isinstance(example, Mapping):
                return "\n".join(
                    f"{literal(key)} = {literal(text)}" for key, text in example.items()
                )
        return '"key" = "value"'

    def read(self, value: object, folder: Path) -> str:
        """Return one value of the table. Each value is read separately."""
        if isinstance(value, str):
            return value
        line = self.example_line().partition("\n")[0]
        raise ValueError(f"must be text; write both sides of = in quotes: {line}")

    def json_schema(self) -> dict[str, object]:
        """Return an object of strings."""
        return {
            "type": "object",
            "propertyNames": {"pattern": r"^[^\u0000]+$"},
            "additionalProperties": {"type": "string", "pattern": self.pattern},
        }

    def describe(self) -> str:
        """Return ``text``."""
        return "text"


def close_match(word: str, known: Collection[str]) -> str | None:
    """Return the one of the ``known`` words that is most like ``word``; None if none is."""
    plain = {_plain(each): each for each in known}
    close = difflib.get_close_matches(_plain(word[:MAX_WORD]), plain, n=1)
    return plain[close[0]] if close else None


def _plain(word: str) -> str:
    return word.strip().lower().replace("-", "_")


def literal(value: object) -> str:
    """Return a value in TOML, a table on one line."""
    if isinstance(value, Mapping) and value:
        entries = (f"{quoted_key(key)} = {literal(each)}" for key, each in value.items())
        return f"{{ {', '.join(entries)} }}"
    return json.dumps(value, ensure_ascii=False, default=str)


def quoted_key(key: str) -> str:
    """Return a key in TOML, quoted if necessary."""
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else literal(key)
