"""The types of values in a TOML file that are tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from fledge.oci.builders import Secret
from fledge.project.values import InputFile, Value, quoted_key

_NAME = "[A-Za-z_][A-Za-z0-9_]*"
_ID = "[A-Za-z0-9][A-Za-z0-9._-]*"


class Texts(Value, frozen=True):
    """A table of texts, whose keys are free."""

    example: ClassVar[str] = '{ KEY = "value" }'
    typed: ClassVar[Any] = tuple

    def read(self, value: object, folder: Path) -> tuple[tuple[str, str], ...]:
        """Return the entries, sorted by their keys. Refuses keys with ``=``, and NUL."""
        problem = f"must be a table of texts in quotes, such as {self.like()}"
        if not isinstance(value, Mapping):
            raise ValueError(problem)
        for key, text in value.items():
            if not isinstance(text, str):
                raise ValueError(f"{problem}; {quoted_key(key)} is no text")
            if not re.fullmatch(_NAME, key) or "\0" in text:
                raise ValueError(
                    f"{quoted_key(key)} is no name of letters, digits and _, or has NUL"
                )
        return tuple(sorted(value.items()))

    def json_schema(self) -> dict[str, object]:
        """Return an object of strings."""
        return {
            "type": "object",
            "propertyNames": {"pattern": f"^{_NAME}$"},
            "additionalProperties": {"type": "string", "pattern": r"^[^\u0000]*$"},
        }

    def describe(self) -> str:
        """Return ``a table of texts``."""
        return "a table of texts"


class Secrets(Value, frozen=True):
    """A table of secrets by their IDs, each ``{ file = … }`` or ``{ env = … }``."""

    example: ClassVar[str] = '{ token = { env = "TOKEN" } }'
    typed: ClassVar[Any] = tuple

    def read(self, value: object, folder: Path) -> tuple[Secret, ...]:
        """Return the secrets, sorted by their IDs. A relative path starts at ``folder``."""
        if not isinstance(value, Mapping):
            raise ValueError(f"must be a table, such as {self.like()}")
        return tuple(_read_secret(id_, value[id_], folder) for id_ in sorted(value))

    def json_schema(self) -> dict[str, object]:
        """Return an object of such objects."""
        places = {
            "file": {"type": "string", "pattern": r'^(?=[^\u0000]*[^\s\u0000])[^\u0000,"]+$'},
            "env": {"type": "string", "pattern": f"^{_NAME}$"},
        }
        choices = [
            {
                "type": "object",
                "properties": {name: place},
                "required": [name],
                "additionalProperties": False,
            }
            for name, place in places.items()
        ]
        return {
            "type": "object",
            "propertyNames": {"pattern": f"^{_ID}$"},
            "additionalProperties": {"anyOf": choices},
        }

    def describe(self) -> str:
        """Return the form of the table."""
        return "a table of `{ file = … }` or `{ env = … }`"


def _read_secret(id_: str, value: object, folder: Path) -> Secret:
    """Read one entry of a table of secrets. Raises `ValueError`."""
    if not re.fullmatch(_ID, id_):
        raise ValueError(f"{quoted_key(id_)} is no ID of letters, digits, ., _ and -")
    if isinstance(value, Mapping) and list(value) == ["file"]:
        path = InputFile().read(value["file"], folder)
        if re.search('[,"]', str(path)):
            raise ValueError(f"{path}: builders take no file with a comma or a quote in its name")
        return Secret(id_, file=path)
    if isinstance(value, Mapping) and list(value) == ["env"]:
        name = value["env"]
        if isinstance(name, str) and re.fullmatch(_NAME, name):
            return Secret(id_, env=name)
    raise ValueError(
        f'{quoted_key(id_)} must be {{ file = "FILE" }} or {{ env = "NAME" }}; the value of a'
        " secret does not belong here"
    )
