"""A software package in a tree, and how the metadata of packages is read within bounds."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import msgspec

from fledge.errors import MalformedError
from fledge.report import human_size
from fledge.tree.content import Content, content_size, read_range
from fledge.tree.names import printable

PackageKind = Literal["apk", "deb", "golang", "npm", "pypi", "rpm"]
"""A kind of package, by its name in package URLs (package-url/purl-spec, types)."""

MAX_READ = 1 << 30
"""Maximum bytes of metadata that are read of one tree."""
MAX_TEXT = 1000
"""Maximum characters of a name, a version or a licence."""


MAX_FIELDS = 1000
"""Maximum fields with different names in a paragraph."""


class Package(msgspec.Struct, frozen=True):
    """A package that is installed in a tree."""

    kind: PackageKind
    name: str
    version: str
    """Empty if the metadata does not say it."""
    path: bytes
    """The file with its metadata, without a leading slash."""
    architecture: str | None = None
    """As its packager writes it. None: it has none."""
    licence: str = ""
    """As its metadata declares it: mostly an SPDX expression, but any text. Empty: not known."""
    source: str = ""
    """The source package that it was built from, with its version if that differs. Empty: it has
    the same name and version, or none is known."""


class LimitError(Exception):
    """There is more metadata than `MAX_READ`."""


class Meter:
    """Reads contents, and counts the bytes against `MAX_READ`."""

    def __init__(self) -> None:
        self._left = MAX_READ

    def charge(self, size: int) -> None:
        """Count bytes. Raises `LimitError` if they are too many."""
        self._left -= size
        if self._left < 0:
            raise LimitError(f"the metadata of packages has more than {human_size(MAX_READ)}")

    def read(self, content: Content, offset: int, size: int) -> bytes:
        """Return at most ``size`` bytes from ``offset`` on. Raises `LimitError`, `FledgeError`."""
        self.charge(size)
        return read_range(content, offset, size)

    def read_all(self, content: Content, limit: int) -> bytes:
        """Return a whole content. Raises `MalformedError` if it has over ``limit`` bytes."""
        size = content_size(content)
        if size > limit:
            raise MalformedError(f"it has {size} bytes, more than the {limit} that are read")
        return self.read(content, 0, size)


class Ecosystem(NamedTuple):
    """How the packages of one kind are found. To add one, write a module with such a value."""

    kind: PackageKind
    matches: Callable[[bytes, int], bool]
    """Returns whether a file, by its path without a leading slash and its mode, may have metadata
    of packages. Called for every file of a tree."""
    read: Callable[[bytes, Content, Meter], Iterator[Package]]
    """Yields the packages of a file that matches. Raises `MalformedError`, `LimitError` or
    `FledgeError`."""


def text(value: str | bytes | None, what: str) -> str:
    """Return a text of metadata on one line, without control characters.

    Raises `MalformedError` if it is missing, empty or longer than `MAX_TEXT`; ``what`` names it.
    """
    found = optional_text(value)
    if not found:
        raise MalformedError(f"its {what} is missing or has more than {MAX_TEXT} characters")
    return found


def optional_text(value: str | bytes | None) -> str:
    """Return the same; empty if it is missing or longer than `MAX_TEXT`."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    found = printable(" ".join((value or "").split()))
    return found if len(found) <= MAX_TEXT else ""


def paragraphs(data: bytes) -> Iterator[dict[bytes, bytes]]:
    """Yield the fields of each paragraph of ``NAME:VALUE`` lines, as apk and dpkg write them.

    Paragraphs end with an empty line. Lines that continue a value are left out. Of fields with the
    same name, the first counts. Raises `MalformedError` for any other line.
    """
    fields: dict[bytes, bytes] = {}
    for line in io.BytesIO(data):
        if not line.strip():
            if fields:
                yield fields
            fields = {}
        elif line[:1] not in b" \t":
            name, colon, value = line.partition(b":")
            if not colon or len(fields) == MAX_FIELDS:
                raise MalformedError(f"{printable(line[:60])!r} is not a field of a package")
            fields.setdefault(name, value.strip())
    if fields:
        yield fields
