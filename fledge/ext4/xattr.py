"""Extended attributes as ext4 keeps them: behind the fields of an inode, and in one block.

Documentation/filesystems/ext4/attributes.rst; ACLs as in fs/ext4/acl.h.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from fledge.ext4.structures import BLOCK_SIZE, XATTR_SPACE, Damage, checksum
from fledge.tree.limits import POSIX_ACLS
from fledge.tree.names import printable

MAGIC = 0xEA020000
HEADER = Struct("<5I12x")
"""Of a block: magic, inodes that share it, blocks, a hash of all entries, a checksum."""
ENTRY = Struct("<BBHIII")
"""Length of the name, what it begins with, offset of the value, 0, size of the value, hash."""

PREFIXES = {
    b"user.": 1,
    b"system.posix_acl_access": 2,
    b"system.posix_acl_default": 3,
    b"trusted.": 4,
    b"security.": 6,
}
"""What stands for the beginning of a name. The ACLs' names have nothing behind it."""
_SHOWN = {number: name for name, number in PREFIXES.items()}
MAX_NAME = 255
"""The longest name in bytes that the kernel takes (XATTR_NAME_MAX)."""

ACL_VERSION, ACL_DISK_VERSION = 2, 1
ACL_ENTRY = Struct("<HHI")
"""Of the ACLs that the kernel shows: tag, permissions, user or group."""
ACL_SHORT_ENTRY = Struct("<HH")
ACL_WITH_ID = (0x02, 0x08)
"""The tags of named users and groups; those of all others say nothing of an id."""
ACL_WITHOUT_ID = (0x01, 0x04, 0x10, 0x20)

_U32 = Struct("<I")
_MASK = 0xFFFFFFFF


class XattrError(Exception):
    """What ext4 has no place for. The caller knows whose it is."""


class Packed(NamedTuple):
    """The extended attributes of one inode."""

    inode: bytes
    """What goes behind its fields."""
    block: bytes
    """A block whose checksum `with_checksum` adds, or nothing."""


class _Xattr(NamedTuple):
    prefix: int
    name: bytes
    value: bytes

    @property
    def size(self) -> int:
        return ENTRY.size + _rounded(len(self.name)) + _rounded(len(self.value))


def pack(xattrs: Mapping[bytes, bytes]) -> Packed:
    """What fits into the inode, in the order of the kernel, and the rest.

    Raises `XattrError` if there is no place for one of them, or not for all.
    """
    inside: list[_Xattr] = []
    outside: list[_Xattr] = []
    left = XATTR_SPACE - 2 * _U32.size
    for xattr in sorted(
        (_split(name, value) for name, value in xattrs.items()),
        key=lambda xattr: (xattr.prefix, len(xattr.name), xattr.name),
    ):
        if xattr.size <= left:
            inside.append(xattr)
            left -= xattr.size
        else:
            outside.append(xattr)
    space = BLOCK_SIZE - HEADER.size - _U32.size
    if (needed := sum(xattr.size for xattr in outside)) > space:
        raise XattrError(f"{needed} bytes of extended attributes; ext4 has {space} for them")
    start = _U32.pack(MAGIC)
    return Packed(
        start + _fill(inside, XATTR_SPACE - len(start), 0)[0] if inside else b"",
        _block(outside) if outside else b"",
    )


def with_checksum(block: bytes, position: int, seed: int) -> bytes:
    """The block as it is at that position; ``seed`` is the filesystem's."""
    total = checksum(checksum(seed, position.to_bytes(8, "little")), block)
    return block[:16] + _U32.pack(total) + block[20:]


class Stored(NamedTuple):
    """An entry as it is on disk."""

    prefix: int
    name: bytes
    offset: int
    """Where its value is."""
    inode: int
    """The inode that its value is in instead, or 0."""
    size: int


def unpack(data: bytes, start: int) -> Iterator[Stored]:
    """The entries from ``start`` on. Raises `Damage`."""
    while True:
        if data[start : start + _U32.size] == bytes(_U32.size):
            return
        if start + ENTRY.size > len(data):
            raise Damage("its extended attributes have no end")
        length, prefix, offset, inode, size, _ = ENTRY.unpack_from(data, start)
        start += ENTRY.size
        name = data[start : start + length]
        if len(name) < length or b"\0" in name:
            raise Damage("an extended attribute has an impossible name")
        yield Stored(prefix, name, offset, inode, size)
        start += _rounded(length)


def is_intact(block: bytes, position: int, seed: int) -> bool:
    """Whether the checksum of a block at that position is right."""
    return with_checksum(block[:16] + bytes(4) + block[20:], position, seed) == block


def full_name(prefix: int, name: bytes) -> bytes | None:
    """The name of what the kernel shows; None for what it keeps to itself. Raises `Damage`."""
    beginning = _SHOWN.get(prefix)
    if beginning is None:
        return None
    if bool(name) == (beginning in POSIX_ACLS):
        raise Damage("an extended attribute has an impossible name")
    return beginning + name


def unpack_acl(value: bytes) -> bytes:
    """From the version on disk to that which system calls use. Raises `Damage`."""
    try:
        (version,) = _U32.unpack_from(value)
        unpacked = _U32.pack(ACL_VERSION)
        position = _U32.size
        while position < len(value):
            tag, permissions = ACL_SHORT_ENTRY.unpack_from(value, position)
            identifier = _MASK
            if tag in ACL_WITH_ID:
                _, _, identifier = ACL_ENTRY.unpack_from(value, position)
                position += ACL_ENTRY.size
            elif tag in ACL_WITHOUT_ID:
                position += ACL_SHORT_ENTRY.size
            else:
                raise Damage("its ACL is malformed")
            unpacked += ACL_ENTRY.pack(tag, permissions, identifier)
    except StructError:
        raise Damage("its ACL is malformed") from None
    if version != ACL_DISK_VERSION:
        raise Damage("its ACL is malformed")
    return unpacked


def _split(name: bytes, value: bytes) -> _Xattr:
    if name in POSIX_ACLS:
        return _Xattr(PREFIXES[name], b"", _acl(name, value))
    prefix, dot, suffix = name.partition(b".")
    number = PREFIXES.get(prefix + dot)
    if number is None or not suffix or len(name) > MAX_NAME:
        raise XattrError(f"ext4 has no place for the extended attribute {printable(name)}")
    return _Xattr(number, suffix, value)


def _acl(name: bytes, value: bytes) -> bytes:
    """From the version that system calls use to that on disk."""
    entries = value[_U32.size :]
    if value[: _U32.size] != _U32.pack(ACL_VERSION) or len(entries) % ACL_ENTRY.size or not entries:
        raise XattrError(f"its {name.decode()} is malformed")
    packed = _U32.pack(ACL_DISK_VERSION)
    for tag, permissions, identifier in ACL_ENTRY.iter_unpack(entries):
        if tag in ACL_WITH_ID:
            packed += ACL_ENTRY.pack(tag, permissions, identifier)
        elif tag in ACL_WITHOUT_ID:
            packed += ACL_SHORT_ENTRY.pack(tag, permissions)
        else:
            raise XattrError(f"its {name.decode()} is malformed")
    return packed


def _block(xattrs: list[_Xattr]) -> bytes:
    entries, hashes = _fill(xattrs, BLOCK_SIZE - HEADER.size, HEADER.size)
    total = 0
    for entry_hash in hashes:
        total = (total << 16 | total >> 16) & _MASK ^ entry_hash
    return HEADER.pack(MAGIC, 1, 1, total if all(hashes) else 0, 0) + entries


def _fill(xattrs: Iterable[_Xattr], space: int, base: int) -> tuple[bytes, list[int]]:
    """Entries from the start, values from the end; offsets count from ``base`` before it."""
    entries = b""
    values = b""
    hashes: list[int] = []
    for prefix, name, value in xattrs:
        padded = value + bytes(-len(value) % 4)
        values = padded + values
        hashes.append(_hash(name, padded))
        offset = base + space - len(values) if value else 0
        entries += ENTRY.pack(len(name), prefix, offset, 0, len(value), hashes[-1])
        entries += name + bytes(-len(name) % 4)
    return entries.ljust(space - len(values), b"\0") + values, hashes


def _hash(name: bytes, padded: bytes) -> int:
    """Of one entry (ext4_xattr_hash_entry, with bytes as unsigned)."""
    total = 0
    for byte in name:
        total = (total << 5 | total >> 27) & _MASK ^ byte
    for (word,) in _U32.iter_unpack(padded):
        total = (total << 16 | total >> 16) & _MASK ^ word
    return total


def _rounded(size: int) -> int:
    return size + -size % 4
