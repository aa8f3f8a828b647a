"""Extended attributes, behind an inode and shared by several.

Behind an inode::

    │ header │ ids of shared attributes │ entry, name, value │ entry, name, value │ …

An id is the position of an entry among the shared ones, in units of 4 bytes from ``xattr_blkaddr``
on. Entries begin at multiples of 4 bytes, and may cross blocks. ACLs are stored as system calls
have them (acl(5), include/linux/posix_acl_xattr.h), with a number for their whole name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, NamedTuple

from fledge.errors import MalformedError
from fledge.tree.binary import Layout, u8, u16, u32
from fledge.tree.names import printable
from fledge.tree.xattr_names import full_name, split_name


class Header(NamedTuple):
    """struct erofs_xattr_ibody_header."""

    name_filter: Annotated[int, u32(0x0)]
    """Of names that are not there (XATTR_FILTER)."""
    shared_count: Annotated[int, u8(0x4)]


class SharedId(NamedTuple):
    """The place of a shared attribute."""

    id: Annotated[int, u32(0x0)]


class Entry(NamedTuple):
    """struct erofs_xattr_entry, before the name and the value."""

    name_len: Annotated[int, u8(0x0)]
    name_index: Annotated[int, u8(0x1)]
    """Which of `fledge.tree.xattr_names.PREFIXES` the name begins with."""
    value_size: Annotated[int, u16(0x2)]


HEADER = Layout(Header, size=12)
SHARED_ID = Layout(SharedId, size=4)
ENTRY = Layout(Entry, size=4)

UNIT = 4
"""Bytes in which sizes and ids count."""

MAX_SHARED = 0xFF
"""Shared attributes of one inode."""
MAX_VALUE = 0xFFFF
"""Bytes of a value, one less than Linux takes."""
MAX_SIZE = HEADER.size + UNIT * (0xFFFF - 1)
"""Bytes of all that is behind one inode."""


def pack(name: bytes, value: bytes) -> bytes:
    """Return an attribute as an entry. Raises `MalformedError` if erofs cannot store it."""
    split = split_name(name)
    if split is None:
        raise MalformedError(f"erofs has no place for the extended attribute {printable(name)}")
    number, rest = split
    if len(value) > MAX_VALUE:
        raise MalformedError(
            f"the extended attribute {printable(name)} has {len(value)} bytes; erofs takes"
            f" {MAX_VALUE}"
        )
    entry = ENTRY.pack(Entry(len(rest), number, len(value))) + rest + value
    return entry + bytes(-len(entry) % UNIT)


def pack_body(shared: Sequence[int], entries: Iterable[bytes]) -> bytes:
    """Return the attributes of an inode, which follow it: ids of shared ones, then entries.

    Raises `MalformedError` if they are too large together.
    """
    ids = b"".join(SHARED_ID.pack(SharedId(each)) for each in shared)
    body = HEADER.pack(Header(0, len(shared))) + ids + b"".join(entries)
    if len(body) > MAX_SIZE:
        raise MalformedError(f"{len(body)} bytes of extended attributes; erofs takes {MAX_SIZE}")
    return body


def count(body: bytes) -> int:
    """Return the field ``xattr_count`` of an inode with these packed attributes."""
    return (len(body) - HEADER.size) // UNIT + 1 if body else 0


def body_size(xattr_count: int) -> int:
    """Return the bytes behind an inode with that field."""
    return HEADER.size + (xattr_count - 1) * UNIT if xattr_count else 0


def unpack_body(body: bytes) -> tuple[list[int], bytes]:
    """Return the ids of shared attributes, and the entries of others. Raises `MalformedError`."""
    end = HEADER.size + HEADER.unpack_from(body).shared_count * SHARED_ID.size
    if end > len(body):
        raise MalformedError("its extended attributes are malformed")
    ids = [each.id for each in SHARED_ID.iter_unpack(body[HEADER.size : end])]
    return ids, body[end:]


def unpack(entries: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name and value of each entry. Raises `MalformedError`."""
    position = 0
    while position < len(entries):
        try:
            entry = ENTRY.unpack_from(entries, position)
        except struct.error as error:
            raise MalformedError("its extended attributes are malformed") from error
        begin = position + ENTRY.size
        end = begin + entry.name_len + entry.value_size
        if end > len(entries):
            raise MalformedError("its extended attributes are malformed")
        name = full_name(entry.name_index, entries[begin : begin + entry.name_len])
        if name is not None:
            yield name, entries[begin + entry.name_len : end]
        position = end + -end % UNIT


def entry_size(start: bytes) -> int:
    """Return the bytes of the entry that begins with ``start``, without the padding."""
    entry = ENTRY.unpack_from(start)
    return ENTRY.size + entry.name_len + entry.value_size
