"""Writes the table of extended attributes.

Inodes with the same attributes share an entry of the table. A value that occurs again is a
reference to where it is written first::

    names and values   type │ size │ name │ size │ value    type │ size │ name │ 8 │ reference   ...
    table              reference to the first name, count, size                               ...
"""

from __future__ import annotations

from collections.abc import Mapping

from fledge.disks.squashfs.codecs import Compress
from fledge.disks.squashfs.metadata import Stream, lookup_table
from fledge.disks.squashfs.structures import (
    NO_XATTRS,
    NONE,
    REFERENCE,
    VALUE_ELSEWHERE,
    XATTR_ENTRY,
    XATTR_HEADER,
    XATTR_NAME,
    XATTR_PREFIXES,
    XATTR_VALUE,
    XattrEntry,
    XattrHeader,
    XattrName,
    XattrValue,
)


def can_store(name: bytes) -> bool:
    """Return whether an image can have an extended attribute of that name."""
    return any(name.startswith(prefix) and name != prefix for prefix in XATTR_PREFIXES)


class XattrWriter:
    """Collects the extended attributes of inodes."""

    def __init__(self, compress: Compress) -> None:
        self._compress = compress
        self._stream = Stream(compress)
        self._entries: list[XattrEntry] = []
        self._numbers: dict[tuple[tuple[bytes, bytes], ...], int] = {}
        self._values: dict[bytes, int] = {}
        """The reference to each value that a reference is shorter than."""

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, xattrs: Mapping[bytes, bytes]) -> int:
        """Return the number of the entry with the attributes that an image can have."""
        items = tuple(sorted(item for item in xattrs.items() if can_store(item[0])))
        if not items:
            return NO_XATTRS
        if items not in self._numbers:
            self._numbers[items] = len(self._entries)
            reference = self._stream.reference
            size = sum(self._write(name, value) for name, value in items)
            self._entries.append(XattrEntry(reference, len(items), size))
        return self._numbers[items]

    def _write(self, name: bytes, value: bytes) -> int:
        """Write an attribute; return its part of `XattrEntry.size`."""
        kind = next(
            number for number, prefix in enumerate(XATTR_PREFIXES) if name.startswith(prefix)
        )
        rest = name[len(XATTR_PREFIXES[kind]) :]
        stored = value
        if value in self._values:
            kind |= VALUE_ELSEWHERE
            stored = REFERENCE.pack(self._values[value])
        self._stream.write(XATTR_NAME.pack(XattrName(kind, len(rest))) + rest)
        if len(value) > REFERENCE.size and stored is value:
            self._values[value] = self._stream.reference
        self._stream.write(XATTR_VALUE.pack(XattrValue(len(stored))) + stored)
        return len(name) + 1 + len(stored)

    def finish(self, position: int) -> tuple[bytes, int]:
        """Return the tables that begin at ``position``, and the position of their header."""
        if not self._entries:
            return b"", NONE
        names = self._stream.finish()
        after = position + len(names)
        table, index = lookup_table(map(XATTR_ENTRY.pack, self._entries), after, self._compress)
        # The header stands between the pieces of the table and their index.
        pieces = table[: index - after]
        header = XATTR_HEADER.pack(XattrHeader(position, len(self._entries)))
        return names + pieces + header + table[len(pieces) :], index
