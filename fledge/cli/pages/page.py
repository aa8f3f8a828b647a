"""Puts a page together: a template, a style, a script, and the data that the script shows.

Names in an artifact may be hostile. They come into a page as JSON only, in which no character means
anything to HTML, and the script shows them as text. The page forbids the browser everything but
this one script and style (Content Security Policy).
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import msgspec

from fledge.errors import ConfigError
from fledge.host.files import check_output, replacing
from fledge.tree.names import printable

FOLDER = Path(__file__).parent
"""The folder of the template, the style and the script."""

MAX_NAME = 120
"""Maximum characters of a name in a page."""

MAX_PATH = 300
"""Maximum characters of a path in a page."""

MAX_TABLE = 120_000
"""Maximum bytes of the rows of one table."""

_ESCAPES = str.maketrans({each: f"\\u{ord(each):04x}" for each in "<>&"})

Cell = str | int
Row = Sequence[Cell]


class Column(msgspec.Struct, frozen=True):
    """A column of a table."""

    title: str
    kind: str = "text"
    """``text``, ``path``, ``size`` (bytes), ``change`` (bytes, with a sign) or ``count``."""


class Table(msgspec.Struct, frozen=True):
    """A table below the map."""

    title: str
    text: str
    """Explains it in a sentence or two."""
    columns: tuple[Column, ...]
    rows: Iterable[Row]
    empty: str = "None."
    """Said in place of a table without rows."""


class Page(msgspec.Struct, frozen=True):
    """What a page shows."""

    title: str
    facts: Sequence[tuple[str, str]]
    """Facts about all of it, by their titles."""
    notes: Sequence[str]
    """What the reader must know to read the figures right."""
    map: Mapping[str, object]
    """The map of sizes, as `fledge.cli.pages.areas.as_json` returns it."""
    tables: Sequence[Table]


def check(output: Path, *artifacts: Path) -> None:
    """Check, before all other work, that a page can be written.

    Raises `ConfigError` if it would replace one of the artifacts, or as `check_output`.
    """
    check_output(output)
    if output.exists() and any(each.exists() and output.samefile(each) for each in artifacts):
        raise ConfigError(
            f"the page would replace the artifact {output}", "Choose another file with --html."
        )


def write(output: Path, page: Page) -> None:
    """Write a page to a file, all at once. Raises as `replacing`."""
    text = render(page)
    with replacing(output) as file:
        file.write(text.encode())


def render(page: Page) -> str:
    """Return a page as HTML. The same page gives the same text."""
    style, script = ((FOLDER / name).read_text() for name in ("report.css", "report.js"))
    parts = {
        "title": "fledge report",
        "style-hash": _hash(style),
        "script-hash": _hash(script),
        "style": style,
        "script": script,
        "data": encode(
            {
                "title": page.title,
                "facts": page.facts,
                "notes": page.notes,
                "map": page.map,
                "tables": [_table(each) for each in page.tables],
            }
        ),
    }
    text = (FOLDER / "report.html").read_text()
    pieces = text.split("@@")
    # Pieces with odd numbers are names. What they stand for is not searched for further names.
    return "".join(parts[each] if number % 2 else each for number, each in enumerate(pieces))


def encode(value: object) -> str:
    """Return a value as ASCII JSON without any character that has a meaning in HTML."""
    return json.dumps(value, separators=(",", ":")).translate(_ESCAPES)


def shown_name(name: bytes, limit: int = MAX_NAME) -> str:
    """Return a name without control or invisible characters, cut in its middle if it is long."""
    text = printable(name)
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}…{text[-(limit // 2) :]}"


def shown_path(path: bytes) -> str:
    """Return a path as `shown_name` does, with a leading slash."""
    return shown_name(b"/" + path, MAX_PATH)


def _table(table: Table) -> dict[str, object]:
    """Return a table as JSON, with as many rows as `MAX_TABLE` allows."""
    rows: list[Row] = []
    more = size = 0
    for row in table.rows:
        if size < MAX_TABLE:
            size += len(encode(row)) + 1
        if size < MAX_TABLE:
            rows.append(row)
        else:
            more += 1
    return {
        "title": table.title,
        "text": table.text,
        "columns": [(each.title, each.kind) for each in table.columns],
        "rows": rows,
        "more": more,
        "empty": table.empty,
    }


def _hash(text: str) -> str:
    """Return the source of a Content Security Policy that allows one text (CSP Level 3, 2.3.1)."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
