"""JSON from elsewhere, whose members are checked as they are taken."""

from __future__ import annotations

import json
import re

from fledge.errors import CorruptError

MAX_SIZE = 4 << 20
"""Bytes in one document; the limit that registries have for a manifest."""
MAX_NUMBER = 1 << 40
"""What a size, the only number that is asked for, may be."""

DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class Document:
    """A JSON object; ``where`` names it in messages.

    Every method raises `CorruptError` if the member is missing, null or of another type.
    """

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise CorruptError(f"{where}: is not a JSON object")
        self._members = value
        self.where = where

    def has(self, key: str) -> bool:
        return self._members.get(key) is not None

    def text(self, key: str, default: str | None = None) -> str:
        """A string that is safe for a terminal."""
        value = self._members.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or not value.isprintable():
            raise self.wrong(key, "is not a printable string")
        return value

    def texts(self, key: str) -> list[str]:
        values = self._list(key)
        texts = [value for value in values if isinstance(value, str) and value.isprintable()]
        if len(texts) < len(values):
            raise self.wrong(key, "holds something else than printable strings")
        return texts

    def natural(self, key: str) -> int:
        value = self._members.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_NUMBER:
            raise self.wrong(key, f"is not a whole number from 0 to {MAX_NUMBER}")
        return value

    def member(self, key: str) -> Document:
        return Document(self._members.get(key), f"{self.where}: {key}")

    def members(self, key: str) -> list[Document]:
        return [Document(value, f"{self.where}: {key}") for value in self._list(key)]

    def wrong(self, key: str, problem: str) -> CorruptError:
        return CorruptError(f"{self.where}: {key} {problem}")

    def _list(self, key: str) -> list[object]:
        value = self._members.get(key)
        if not isinstance(value, list):
            raise self.wrong(key, "is not a list")
        return value


def parse(raw: bytes, where: str) -> Document:
    """The JSON object that these bytes are. Raises `CorruptError`."""
    return Document(_load(raw, where), where)


def parse_list(raw: bytes, where: str) -> list[Document]:
    """The list of JSON objects that these bytes are. Raises `CorruptError`."""
    value = _load(raw, where)
    if not isinstance(value, list):
        raise CorruptError(f"{where}: is not a JSON list")
    return [Document(each, where) for each in value]


def _load(raw: bytes, where: str) -> object:
    if len(raw) > MAX_SIZE:
        raise CorruptError(f"{where}: has more than {MAX_SIZE >> 20} MiB")
    try:
        return json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{where}: is not JSON") from error


def parse_digest(text: str, where: str) -> str:
    """The hex digits of ``sha256:HEX``. Raises `CorruptError`."""
    if match := DIGEST.fullmatch(text):
        return match[1]
    if text.startswith("sha512:"):
        raise CorruptError(
            f"{where}: a sha512 digest, which fledge does not verify",
            "Store the image with sha256 digests, as most tools do.",
        )
    raise CorruptError(f"{where}: {text[:100]!r} is not a sha256 digest")
