"""TOML files that people write or edit: read, checked as they are taken, all problems at once."""

from __future__ import annotations

import difflib
import json
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

import tomli

from fledge.errors import ConfigError, reason
from fledge.oci import reference
from fledge.oci.reference import DIGEST, Reference
from fledge.store.cache import SHA256

MAX_SIZE = 1 << 20
"""Bytes in a file; it is for people to read."""

MAX_SHOWN = 80
"""Characters of a wrong value that a message repeats."""


class InvalidConfig(ConfigError):
    """Everything that is wrong with a file, one text for each problem."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        listing = "".join(f"\n  {path}: {problem}" for problem in problems)
        super().__init__(f"{path} has {count}:{listing}")
        self.problems = problems


def read(path: Path, if_missing: str) -> dict[str, object]:
    """The top table of a file. Raises `InvalidConfig` if it is no TOML, `ConfigError` if it
    cannot be read; ``if_missing`` is the hint where there is none.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_SIZE + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", if_missing) from None
    except OSError as error:
        raise ConfigError(f"{path}: {reason(error)}") from None
    if len(raw) > MAX_SIZE:
        raise ConfigError(f"{path} is larger than {MAX_SIZE} bytes: not a file of fledge")
    try:
        return tomli.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InvalidConfig(path, [f"line {line}: not UTF-8 text, which TOML must be"]) from None
    except tomli.TOMLDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidConfig(path, [f"{where}: TOML syntax: {error.msg}"]) from None
    except (RecursionError, ValueError):
        raise InvalidConfig(path, ["a number is too long or something nested too deep"]) from None


class Table:
    """A TOML table that collects what is wrong with it and knows which keys it may have."""

    def __init__(
        self, data: dict[str, object], name: str, folder: Path, problems: list[str]
    ) -> None:
        self.data = data
        self.name = name
        self.folder = folder
        self.problems = problems
        self.known: set[str] = set()

    def complain(self, message: str) -> None:
        self.problems.append(f"[{self.name}]: {message}")

    def wrong(self, key: str, message: str) -> None:
        try:
            value = json.dumps(self.data[key], ensure_ascii=False, default=str)
        except (RecursionError, ValueError):  # too deep or too many digits for Python
            value = "…"
        if len(value) > MAX_SHOWN:
            value = value[:MAX_SHOWN] + "…"
        self.problems.append(f"{self._where(key)} = {value}: {message}")

    def missing(self, key: str, message: str) -> None:
        self.problems.append(f"{self._where(key)} is missing: {message}")

    def reject_unknown(self) -> None:
        for key in [key for key in self.data if key not in self.known]:
            close = difflib.get_close_matches(key, self.known, n=1)
            known = ", ".join(sorted(self.known))
            remedy = f"did you mean {close[0]}?" if close else f"known here: {known}"
            self.problems.append(f"{self._where(key)} is unknown: {remedy}")

    def has(self, key: str) -> bool:
        self.known.add(key)
        return key in self.data

    def table(self, name: str) -> Table:
        data = self.data[name] if self.has(name) else {}
        if not isinstance(data, dict):
            self.wrong(name, f"must be a table: [{name}] on a line, its keys on the lines below")
            data = {}
        where = f"{self.name}.{_key(name)}" if self.name else name
        return Table(data, where, self.folder, self.problems)

    def text(self, key: str, default: str | None, example: str) -> str:
        """The text of a key; a ``default`` of None makes it required. Empty if it is wrong."""
        if not self.has(key):
            if default is None:
                self.missing(key, f"write {key} = {example}")
            return default or ""
        value = self.data[key]
        if isinstance(value, str) and value.strip() and "\0" not in value:
            return value
        self.wrong(key, f"must be text, such as {example}")
        return ""

    def choice(self, key: str, options: Iterable[str], default: str | None) -> str:
        """One of the options; empty if it is wrong."""
        names = " or ".join(f'"{option}"' for option in options)
        value = self.text(key, default, names)
        if value in ("", *options):
            return value
        close = difflib.get_close_matches(value, options, n=1)
        self.wrong(key, f'did you mean "{close[0]}"?' if close else f"must be {names}")
        return ""

    def url(self, key: str, default: str | None) -> str:
        value = self.text(key, default, '"https://example.org/file"')
        try:
            parts = urlsplit(value)
            web = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            web = None
        known = web or re.match("file://(localhost)?/", value)
        if value and (not known or re.search(r"\s", value)):
            schemes = '"https://", "http://" or "file:///"'
            self.wrong(key, f"must be a URL without blanks that begins with {schemes}")
        return value

    def reference(self, key: str) -> Reference | None:
        """An image reference; None if it is wrong."""
        value = self.text(key, None, '"nginx:alpine"')
        try:
            return reference.parse(value, self.folder) if value else None
        except ConfigError as error:
            self.wrong(key, f"{error.message.partition(': ')[2] or error.message}; {error.hint}")
            return None

    def sha256(self, key: str, default: str | None = "") -> str | None:
        """A digest as 64 lower-case hexadecimal digits, None if it is not given or wrong.

        A ``default`` of None makes it required.
        """
        value = self.text(key, default, "the file's sha256")
        digest = value.lower().removeprefix("sha256:")
        if SHA256.fullmatch(digest):
            return digest
        if value:
            self.wrong(key, "must be a sha256: 64 hexadecimal digits, as sha256sum prints it")
        return None

    def digest(self, key: str) -> str:
        """The hexadecimal digits of ``sha256:HEX``. Empty if it is wrong."""
        value = self.text(key, None, '"sha256:…"')
        if value and not DIGEST.fullmatch(value):
            self.wrong(key, "must be sha256: and 64 digits out of 0-9 and a-f")
        return value.removeprefix("sha256:")

    def digests(self, key: str) -> list[str]:
        """As `digest`, of a list."""
        if not self.has(key):
            self.missing(key, f'write {key} = ["sha256:…"]')
            return []
        values = self.data[key]
        if not isinstance(values, list) or not all(
            isinstance(value, str) and DIGEST.fullmatch(value) for value in values
        ):
            self.wrong(key, "must be a list, of sha256: and 64 digits out of 0-9 and a-f each")
            return []
        return [value.removeprefix("sha256:") for value in values]

    def file(self, key: str) -> Path:
        """A readable file, relative to the config's folder."""
        value = self.text(key, None, '"path/of/the/file"')
        path = self.folder / value
        try:
            regular = not value or stat.S_ISREG(path.stat().st_mode)
        except OSError as error:
            self.wrong(key, f"{path}: {reason(error)}")
        else:
            if not regular:
                self.wrong(key, f"{path} is not a file")
            elif not os.access(path, os.R_OK):
                self.wrong(key, f"{path} cannot be read; change its permissions")
        return path

    def natural(self, key: str, default: int, most: int) -> int:
        if not self.has(key):
            return default
        value = self.data[key]
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most:
            return value
        self.wrong(key, f"must be a whole number from 0 to {most}")
        return default

    def boolean(self, key: str, default: bool) -> bool:
        if not self.has(key):
            return default
        value = self.data[key]
        if isinstance(value, bool):
            return value
        self.wrong(key, "must be true or false, without quotes")
        return default

    def _where(self, key: str) -> str:
        return f"[{self.name}] {_key(key)}" if self.name else _key(key)


def _key(key: str) -> str:
    """A key as TOML wants it."""
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)
