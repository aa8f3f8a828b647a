"""Names of extended attributes as ext4 and erofs store them.

A number stands for the beginning of a name, such as EXT4_XATTR_INDEX_USER (fs/ext4/xattr.h) or
EROFS_XATTR_INDEX_USER (fs/erofs/erofs_fs.h). Both filesystems have the same numbers.
"""

from __future__ import annotations

from fledge.errors import MalformedError
from fledge.tree.limits import MAX_NAME, POSIX_ACLS

PREFIXES = {
    b"user.": 1,
    b"system.posix_acl_access": 2,
    b"system.posix_acl_default": 3,
    b"trusted.": 4,
    b"security.": 6,
}
"""The number that stands for the beginning of a name. Those of ACLs are complete."""
_PREFIXES_BY_NUMBER = {number: prefix for prefix, number in PREFIXES.items()}


def split_name(name: bytes) -> tuple[int, bytes] | None:
    """Return the number for the beginning of a name, and the rest. None: it cannot be stored."""
    if name in POSIX_ACLS:
        return PREFIXES[name], b""
    prefix, dot, rest = name.partition(b".")
    number = PREFIXES.get(prefix + dot)
    return None if number is None or not rest or len(name) > MAX_NAME else (number, rest)


def full_name(number: int, rest: bytes) -> bytes | None:
    """Return a name as the kernel shows it. None: it does not know the number, and shows nothing.

    Raises `MalformedError` if the name is impossible.
    """
    prefix = _PREFIXES_BY_NUMBER.get(number)
    if prefix is None:
        return None
    if bool(rest) == (prefix in POSIX_ACLS) or b"\0" in rest:
        raise MalformedError("an extended attribute has an impossible name")
    return prefix + rest
