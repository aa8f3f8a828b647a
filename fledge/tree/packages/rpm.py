"""Packages of Fedora and its relatives: the database of rpm, if it is one of SQLite.

The table ``Packages`` has the header of each package as a blob (rpm.org, "RPM V4 header format"),
big-endian and without the magic number that it has in a package::

    0  number of entries  u32
    4  size of the data   u32
    8  entries            16 bytes each: tag, type, offset in the data, count
       data
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, NamedTuple

from fledge.errors import MalformedError
from fledge.tree.binary import Layout, u32
from fledge.tree.content import Content, content_size, read_content
from fledge.tree.packages.package import Ecosystem, Meter, Package, optional_text, text

FOLDERS = (b"var/lib/rpm/", b"usr/lib/sysimage/rpm/", b"usr/share/rpm/")
"""Where distributions keep the database; the last is for those with OSTree."""
SQLITE = b"rpmdb.sqlite"
OTHERS = {
    b"Packages": "a database in Berkeley DB",
    b"Packages.db": "a database in rpm's own format ndb",
    b"rpmdb.sqlite-wal": "a journal with changes of the database",
}
"""Files that are not read, by their names."""
NAMES = frozenset(folder + name for folder in FOLDERS for name in (SQLITE, *OTHERS))

NAME, VERSION, RELEASE, EPOCH, LICENCE, ARCHITECTURE, SOURCE = (
    1000,
    1001,
    1002,
    1003,
    1014,
    1022,
    1044,
)
"""Tags (rpm.org, "RPM tags")."""
INT32, STRING, STRINGS, I18N_STRING = 4, 6, 8, 9
"""Types of entries."""

HEADERS = "SELECT CASE WHEN length(blob) <= ? THEN blob END FROM Packages ORDER BY hnum"
KEY = "gpg-pubkey"
"""The name of entries that are keys and no packages."""

MAX_DATABASE = 512 << 20
"""Maximum bytes of a database, which is copied to a temporary file."""
MAX_HEADER = 32 << 20
"""Maximum bytes of a header."""
MAX_ENTRIES = 1 << 16
"""Maximum entries of a header, which is what rpm itself reads."""
MAX_STEPS = 1_000
"""How often SQLite may execute another `STEP` instructions for one database."""
STEP = 10_000


class _Start(NamedTuple):
    """The beginning of a header."""

    entries: Annotated[int, u32(0)]
    size: Annotated[int, u32(4)]


class _Entry(NamedTuple):
    """An entry of a header."""

    tag: Annotated[int, u32(0)]
    type: Annotated[int, u32(4)]
    offset: Annotated[int, u32(8)]
    values: Annotated[int, u32(12)]


_START = Layout(_Start, size=8, order="big")
_ENTRY = Layout(_Entry, size=16, order="big")


def _matches(path: bytes, mode: int) -> bool:
    return path in NAMES


def _read(path: bytes, content: Content, meter: Meter) -> Iterator[Package]:
    name = path.rpartition(b"/")[2]
    size = content_size(content)
    if name in OTHERS:
        if size:
            raise MalformedError(f"it is {OTHERS[name]}, which fledge does not read")
        return
    if size > MAX_DATABASE:
        raise MalformedError(f"it has {size} bytes, more than the {MAX_DATABASE} that are read")
    meter.charge(size)
    # SQLite reads files alone.
    with TemporaryDirectory(prefix="fledge-") as folder:
        copy = Path(folder, "rpmdb.sqlite")
        with copy.open("wb") as file:
            file.writelines(read_content(content))
        for header in _headers(copy):
            if package := _parse(path, header):
                yield package


def _headers(database: Path) -> Iterator[bytes]:
    """Yield the headers in a database. Raises `MalformedError`."""
    steps = iter(range(MAX_STEPS))
    try:
        # Immutable: the file is a copy, and a journal of the original is none of its.
        with closing(
            sqlite3.connect(f"{database.as_uri()}?mode=ro&immutable=1", uri=True)
        ) as opened:
            opened.set_progress_handler(lambda: next(steps, None) is None, STEP)
            opened.execute("PRAGMA trusted_schema = OFF")
            for (blob,) in opened.execute(HEADERS, (MAX_HEADER,)):
                if not isinstance(blob, bytes):
                    raise MalformedError(f"a header is no blob of at most {MAX_HEADER} bytes")
                yield blob
    except (sqlite3.Error, OverflowError) as error:
        raise MalformedError(f"SQLite cannot read it: {error}") from error


def _parse(path: bytes, header: bytes) -> Package | None:
    """Parse a header. None: it is a key. Raises `MalformedError`."""
    values = _values(header)
    name = text(values.get(NAME), "name")
    if name == KEY:
        return None
    version = text(values.get(VERSION), "version")
    if release := optional_text(values.get(RELEASE)):
        version += f"-{release}"
    if epoch := optional_text(values.get(EPOCH)):
        version = f"{epoch}:{version}"
    return Package(
        kind="rpm",
        name=name,
        version=version,
        path=path,
        architecture=optional_text(values.get(ARCHITECTURE)) or None,
        licence=optional_text(values.get(LICENCE)),
        source=optional_text(values.get(SOURCE)),
    )


def _values(header: bytes) -> dict[int, bytes]:
    """Return the first value of each entry that is a text or a number of 32 bits, as text."""
    if len(header) < _START.size:
        raise MalformedError("a header is cut short")
    start = _START.unpack_from(header)
    begin = _START.size + start.entries * _ENTRY.size
    if start.entries > MAX_ENTRIES or begin + start.size > len(header):
        raise MalformedError(f"a header has {start.entries} entries and is cut short")
    data = header[begin : begin + start.size]
    found: dict[int, bytes] = {}
    for entry in _ENTRY.iter_unpack(header[_START.size : begin]):
        if entry.type in (STRING, STRINGS, I18N_STRING):
            found[entry.tag] = data[entry.offset :].partition(b"\0")[0]
        elif entry.type == INT32 and entry.values:
            found[entry.tag] = b"%d" % int.from_bytes(data[entry.offset : entry.offset + 4], "big")
    return found


RPM = Ecosystem("rpm", _matches, _read)
