"""Extended attributes as ext4 keeps them: in the inode behind its fields, and in one block.

Documentation/filesystems/ext4/attributes.rst in the kernel's sources; ACLs as in fs/ext4/acl.h.
Entries stand at the beginning and values at the end of the same room::

    inode    fields │ magic  │ entry, name │ entry, name │ 0    free    value │ value
    block           │ header │ entry, name │ entry, name │ 0    free    value │ value

Offsets of values count from the first entry in an inode, and from the header in a block.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, NamedTuple

from fledge.errors import MalformedError
from fledge.ext4.structures import BLOCK_SIZE, XATTR_SPACE, checksum
from fledge.tree.binary import Layout, u8, u16, u32
from fledge.tree.limits import POSIX_ACLS
from fledge.tree.names import printable
from fledge.tree.xattr_names import split_name

MAGIC = 0xEA020000


class Header(NamedTuple):
    """struct ext4_xattr_header, the beginning of a block."""

    magic: Annotated[int, u32(0x0)]
    refcount: Annotated[int, u32(0x4)]
    """Inodes that share the block."""
    blocks: Annotated[int, u32(0x8)]
    hash: Annotated[int, u32(0xC)]
    """Of all entries; 0 if one of them has the hash 0."""
    checksum: Annotated[int, u32(0x10)]


class InodeHeader(NamedTuple):
    """struct ext4_xattr_ibody_header, which stands behind the fields of an inode."""

    magic: Annotated[int, u32(0x0)]


class Entry(NamedTuple):
    """struct ext4_xattr_entry, before the name."""

    name_len: Annotated[int, u8(0x0)]
    name_index: Annotated[int, u8(0x1)]
    """Which of `fledge.tree.xattr_names.PREFIXES` the name begins with. The rest of it follows the
    entry."""
    value_offs: Annotated[int, u16(0x2)]
    value_inum: Annotated[int, u32(0x4)]
    """The inode that the value is in instead (ea_inode), or 0."""
    value_size: Annotated[int, u32(0x8)]
    hash: Annotated[int, u32(0xC)]


HEADER = Layout(Header, size=32)
INODE_HEADER = Layout(InodeHeader, size=4)
ENTRY = Layout(Entry, size=16)
END_SIZE = 4
"""Bytes of the zeros behind the last entry."""


class AclHeader(NamedTuple):
    """The beginning of an ACL, on disk and in system calls."""

    version: Annotated[int, u32(0x0)]


class AclEntry(NamedTuple):
    """struct posix_acl_xattr_entry, which system calls use; on disk for named users and groups."""

    tag: Annotated[int, u16(0x0)]
    perm: Annotated[int, u16(0x2)]
    id: Annotated[int, u32(0x4)]
    """A user or group, or `NO_ID`."""


class AclShortEntry(NamedTuple):
    """struct ext4_acl_entry_short, on disk for all that have no id."""

    tag: Annotated[int, u16(0x0)]
    perm: Annotated[int, u16(0x2)]


ACL_HEADER = Layout(AclHeader, size=4)
ACL_VERSION, ACL_DISK_VERSION = 2, 1
ACL_ENTRY = Layout(AclEntry, size=8)
ACL_SHORT_ENTRY = Layout(AclShortEntry, size=4)
ACL_WITH_ID = (0x02, 0x08)
"""The tags of named users and groups."""
ACL_WITHOUT_ID = (0x01, 0x04, 0x10, 0x20)
"""The tags of the owner, the owning group, the mask and all others."""
NO_ID = 0xFFFFFFFF

_WORD = struct.Struct("<I")
_LOW_32_BITS = 0xFFFFFFFF


class Packed(NamedTuple):
    """The extended attributes of one inode."""

    inode: bytes
    """The part behind its fields; empty if there is nothing in it."""
    block: bytes
    """A block, to which `with_checksum` adds the checksum; empty if none is needed."""


class _Xattr(NamedTuple):
    """An extended attribute that ext4 can keep."""

    prefix: int
    """A number of `fledge.tree.xattr_names.PREFIXES`."""
    name: bytes
    """Without the prefix."""
    value: bytes

    @property
    def size(self) -> int:
        return ENTRY.size + _rounded(len(self.name)) + _rounded(len(self.value))


def pack(xattrs: Mapping[bytes, bytes]) -> Packed:
    """Extended attributes in the inode, in the order of the kernel, and in a block if they must.

    Raises `MalformedError` if ext4 cannot keep one of them, or has not enough room for all.
    """
    inside: list[_Xattr] = []
    outside: list[_Xattr] = []
    left = XATTR_SPACE - INODE_HEADER.size - END_SIZE
    for xattr in sorted(
        (_split(name, value) for name, value in xattrs.items()),
        key=lambda xattr: (xattr.prefix, len(xattr.name), xattr.name),
    ):
        if xattr.size <= left:
            inside.append(xattr)
            left -= xattr.size
        else:
            outside.append(xattr)
    space = BLOCK_SIZE - HEADER.size - END_SIZE
    if (needed := sum(xattr.size for xattr in outside)) > space:
        raise MalformedError(f"{needed} bytes of extended attributes; ext4 has {space} for them")
    return Packed(_inode_part(inside) if inside else b"", _block(outside) if outside else b"")


def with_checksum(block: bytes, position: int, seed: int) -> bytes:
    """A block of extended attributes with the checksum that it has as block ``position``.

    ``seed`` is that of the filesystem.
    """
    sealed = bytearray(block)
    _put_checksum(sealed, 0)
    total = checksum(checksum(seed, position.to_bytes(8, "little")), sealed)
    _put_checksum(sealed, total)
    return bytes(sealed)


_put_checksum = HEADER.setter("checksum")


def is_intact(block: bytes, position: int, seed: int) -> bool:
    """Whether the checksum of a block is right; the arguments are those of `with_checksum`."""
    return with_checksum(block, position, seed) == block


def unpack(data: bytes, start: int) -> Iterator[tuple[bytes, Entry]]:
    """Entries and their names without prefixes, from ``start`` on. Raises `MalformedError`."""
    while data[start : start + END_SIZE] != bytes(END_SIZE):
        if start + ENTRY.size > len(data):
            raise MalformedError("its extended attributes have no end")
        entry = ENTRY.unpack_from(data, start)
        start += ENTRY.size
        name = data[start : start + entry.name_len]
        if len(name) < entry.name_len:
            raise MalformedError("an extended attribute has an impossible name")
        yield name, entry
        start += _rounded(entry.name_len)


def unpack_acl(value: bytes) -> bytes:
    """The ACL that system calls show, from the one on disk. Raises `MalformedError`."""
    try:
        version = ACL_HEADER.unpack_from(value).version
        unpacked = ACL_HEADER.pack(AclHeader(ACL_VERSION))
        position = ACL_HEADER.size
        while position < len(value):
            short = ACL_SHORT_ENTRY.unpack_from(value, position)
            if short.tag in ACL_WITH_ID:
                unpacked += ACL_ENTRY.pack(ACL_ENTRY.unpack_from(value, position))
                position += ACL_ENTRY.size
            elif short.tag in ACL_WITHOUT_ID:
                unpacked += ACL_ENTRY.pack(AclEntry(short.tag, short.perm, NO_ID))
                position += ACL_SHORT_ENTRY.size
            else:
                raise MalformedError("its ACL is malformed")
    except struct.error as error:
        raise MalformedError("its ACL is malformed") from error
    if version != ACL_DISK_VERSION:
        raise MalformedError("its ACL is malformed")
    return unpacked


def _split(name: bytes, value: bytes) -> _Xattr:
    """An extended attribute as ext4 keeps it. Raises `MalformedError` if it cannot."""
    split = split_name(name)
    if split is None:
        raise MalformedError(f"ext4 has no place for the extended attribute {printable(name)}")
    return _Xattr(*split, _pack_acl(name, value) if name in POSIX_ACLS else value)


def _pack_acl(name: bytes, value: bytes) -> bytes:
    """The ACL on disk, from the one that system calls use; ``name`` is for messages."""
    header, entries = value[: ACL_HEADER.size], value[ACL_HEADER.size :]
    expected = ACL_HEADER.pack(AclHeader(ACL_VERSION))
    if header != expected or len(entries) % ACL_ENTRY.size or not entries:
        raise MalformedError(f"its {name.decode()} is malformed")
    packed = ACL_HEADER.pack(AclHeader(ACL_DISK_VERSION))
    for entry in ACL_ENTRY.iter_unpack(entries):
        if entry.tag in ACL_WITH_ID:
            packed += ACL_ENTRY.pack(entry)
        elif entry.tag in ACL_WITHOUT_ID:
            packed += ACL_SHORT_ENTRY.pack(AclShortEntry(entry.tag, entry.perm))
        else:
            raise MalformedError(f"its {name.decode()} is malformed")
    return packed


def _inode_part(xattrs: list[_Xattr]) -> bytes:
    """All of an inode behind its fields."""
    header = INODE_HEADER.pack(InodeHeader(MAGIC))
    return header + _entries_and_values(xattrs, XATTR_SPACE - len(header), 0)[0]


def _block(xattrs: list[_Xattr]) -> bytes:
    """A block, still without its checksum."""
    data, hashes = _entries_and_values(xattrs, BLOCK_SIZE - HEADER.size, HEADER.size)
    total = 0
    for entry_hash in hashes:
        total = (total << 16 | total >> 16) & _LOW_32_BITS ^ entry_hash
    header = Header(magic=MAGIC, refcount=1, blocks=1, hash=total if all(hashes) else 0, checksum=0)
    return HEADER.pack(header) + data


def _entries_and_values(xattrs: Iterable[_Xattr], space: int, base: int) -> tuple[bytes, list[int]]:
    """Room of ``space`` bytes with entries at its beginning and values at its end.

    Also the hashes of the entries. Offsets of values count from ``base`` bytes before the room.
    """
    entries = b""
    values = b""
    hashes: list[int] = []
    for prefix, name, value in xattrs:
        padded = value + bytes(-len(value) % 4)
        values = padded + values
        hashes.append(_hash(name, padded))
        entry = Entry(
            name_len=len(name),
            name_index=prefix,
            value_offs=base + space - len(values) if value else 0,
            value_inum=0,
            value_size=len(value),
            hash=hashes[-1],
        )
        entries += ENTRY.pack(entry) + name + bytes(-len(name) % 4)
    return entries.ljust(space - len(values), b"\0") + values, hashes


def _hash(name: bytes, padded: bytes) -> int:
    """The hash of one entry (ext4_xattr_hash_entry, with bytes as unsigned)."""
    total = 0
    for byte in name:
        total = (total << 5 | total >> 27) & _LOW_32_BITS ^ byte
    for (word,) in _WORD.iter_unpack(padded):
        total = (total << 16 | total >> 16) & _LOW_32_BITS ^ word
    return total


def _rounded(size: int) -> int:
    return size + -size % 4
