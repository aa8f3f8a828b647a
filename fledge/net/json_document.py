"""Parses untrusted JSON documents and checks the type of each member that is read."""

from __future__ import annotations

import json

from fledge.errors import CorruptError

MAX_DOCUMENT_SIZE = 4 << 20
"""Maximum bytes in a document: the limit of registries for a manifest."""
MAX_NUMBER = 1 << 40
"""The largest number accepted. All numbers that fledge reads are sizes in bytes."""


class JsonObject:
    """A JSON object. ``where`` names it in messages.

    Methods raise `CorruptError` if the member is missing, null or of another type.
    """

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise CorruptError(f"{where}: is not a JSON object")
        self._members = value
        self.where = where

    def has(self, key: str) -> bool:
        """Return whether the object has a member that is not null."""
        return self._members.get(key) is not None

    def plain(self) -> dict[str, object]:
        """Return the object unchecked, to pass it on as it is."""
        return self._members

    def text(self, key: str, default: str | None = None) -> str:
        """Return a printable string; ``default`` if the member is missing or null."""
        value = self._members.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or not value.isprintable():
            raise self.wrong(key, "is not a printable string")
        return value

    def texts(self, key: str) -> list[str]:
        """Return a list of printable strings."""
        values = self._list(key)
        texts = [value for value in values if isinstance(value, str) and value.isprintable()]
        if len(texts) < len(values):
            raise self.wrong(key, "contains a value that is not a printable string")
        return texts

    def natural(self, key: str) -> int:
        """Return a whole number from 0 to `MAX_NUMBER`."""
        value = self._members.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_NUMBER:
            raise self.wrong(key, f"is not a whole number from 0 to {MAX_NUMBER}")
        return value

    def member(self, key: str) -> JsonObject:
        """Return a member that is an object."""
        return JsonObject(self._members.get(key), f"{self.where}: {key}")

    def members(self, key: str, most: int | None = None) -> list[JsonObject]:
        """Return a member that is a list of objects, of at most ``most``; None: of any number."""
        values = self._list(key)
        if most is not None and len(values) > most:
            raise self.wrong(key, f"has more than {most} entries")
        where = f"{self.where}: {key}"
        return [JsonObject(value, where) for value in values]

    def wrong(self, key: str, problem: str) -> CorruptError:
        """Return the error for a member with a problem, such as ``is not a list``."""
        return CorruptError(f"{self.where}: {key} {problem}")

    def _list(self, key: str) -> list[object]:
        value = self._members.get(key)
        if not isinstance(value, list):
            raise self.wrong(key, "is not a list")
        return value


def parse_object(raw: bytes, where: str) -> JsonObject:
    """Parse a JSON object. Raises `CorruptError`."""
    return JsonObject(_load(raw, where), where)


def parse_list(raw: bytes, where: str) -> list[JsonObject]:
    """Parse a list of JSON objects. Raises `CorruptError`."""
    value = _load(raw, where)
    if not isinstance(value, list):
        raise CorruptError(f"{where}: is not a JSON list")
    return [JsonObject(each, where) for each in value]


def _load(raw: bytes, where: str) -> object:
    if len(raw) > MAX_DOCUMENT_SIZE:
        raise CorruptError(f"{where}: has more than {MAX_DOCUMENT_SIZE >> 20} MiB")
    try:
        return json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{where}: is not JSON") from error
