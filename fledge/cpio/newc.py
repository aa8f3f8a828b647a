"""Writes a tree as a cpio archive in the "new ASCII" format.

An archive is a sequence of entries. The last entry has the name ``TRAILER!!!``. Each entry is:

    header   "070701" and 13 fields of 8 hexadecimal digits each
    name     ``namesize`` bytes, including the final NUL, padded with NULs to a multiple of 4
    data     ``filesize`` bytes, padded with NULs to a multiple of 4

The manual page cpio(5) of libarchive and Documentation/driver-api/early-userspace/
buffer-format.rst of the kernel describe the format.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from operator import attrgetter
from stat import S_IFLNK, S_IFMT

import msgspec

from fledge.errors import CorruptError
from fledge.tree import NANOSECONDS, Device, Directory, File, Node, Symlink, Tree
from fledge.tree.content import Content, content_size, read_content
from fledge.tree.limits import MAX_PATH
from fledge.tree.names import printable

MAX_FIELD = 0xFFFFFFFF
"""The largest value of a field."""

MAGIC = b"070701"
FIELDS = (
    *("ino", "mode", "uid", "gid", "nlink", "mtime", "filesize"),
    *("devmajor", "devminor", "rdevmajor", "rdevminor", "namesize", "check"),
)
"""The fields of a header after the magic number, in order, with eight hexadecimal digits each."""

HEADER_SIZE = len(MAGIC) + 8 * len(FIELDS)
TRAILER = b"TRAILER!!!"
BLOCK_SIZE = 512
"""An archive is padded to a multiple of this many bytes, as GNU cpio does."""

_HEADER_FORMAT = MAGIC + len(FIELDS) * b"%08X"
_header_fields = attrgetter(*FIELDS)


class Entry(msgspec.Struct, frozen=True):
    """The header and name of one entry. Fields have the names of cpio(5)."""

    name: bytes
    ino: int
    mode: int
    uid: int = 0
    gid: int = 0
    nlink: int = 1
    mtime: int = 0
    """Seconds since 1970."""
    filesize: int = 0
    """Bytes of data after the header."""
    devmajor: int = 0
    devminor: int = 0
    rdevmajor: int = 0
    rdevminor: int = 0
    check: int = 0
    """The sum of all data bytes, if the magic number is 070702."""

    @property
    def namesize(self) -> int:
        """Length of the name in bytes, including the final NUL."""
        return len(self.name) + 1

    def pack(self) -> bytes:
        """Return the header and the padded name, as bytes of the archive."""
        end = HEADER_SIZE + self.namesize
        return _HEADER_FORMAT % _header_fields(self) + self.name + b"\0" * (1 + padding(end))


def write(tree: Tree) -> Iterator[bytes]:
    """Write a tree as an archive, and yield it in pieces.

    Entries have the order of `Tree.walk`; the root is ``.``. Inode numbers start at 1, on device
    0. As in GNU cpio, only the last name of a regular file has the data. Times are rounded down
    to seconds and limited to the range of the format, 1970 to 2106. Extended attributes are left
    out. Raises `CorruptError`, with the path, if the format cannot store a node.
    """
    names = Counter(node for _, node in tree.walk() if not isinstance(node, Directory))
    names_left = dict(names)
    inodes: dict[Node, int] = {}
    offset = 0
    for path, node in tree.walk():
        ino = inodes.setdefault(node, len(inodes) + 1)
        if isinstance(node, Directory):
            nlink = node.links
            last = True
        else:
            nlink = names[node]
            names_left[node] -= 1
            last = names_left[node] == 0
        data: Content = b""
        if isinstance(node, Symlink):
            data = node.target
        elif isinstance(node, File) and last:
            data = node.content
        entry = Entry(
            name=b"./" + path if path == TRAILER else path or b".",
            ino=ino,
            mode=node.file_type | node.mode,
            uid=node.uid,
            gid=node.gid,
            nlink=nlink,
            mtime=min(max(node.mtime_ns // NANOSECONDS, 0), MAX_FIELD),
            filesize=content_size(data),
            rdevmajor=node.major if isinstance(node, Device) else 0,
            rdevminor=node.minor if isinstance(node, Device) else 0,
        )
        _check_fits(entry)
        header = entry.pack()
        yield header
        yield from read_content(data)
        yield b"\0" * padding(entry.filesize)
        offset += len(header) + entry.filesize + padding(entry.filesize)
    trailer = Entry(name=TRAILER, ino=0, mode=0).pack()
    yield trailer
    yield b"\0" * (-(offset + len(trailer)) % BLOCK_SIZE)


def _check_fits(entry: Entry) -> None:
    numbers = (entry.uid, entry.gid, entry.rdevmajor, entry.rdevminor)
    if min(numbers) < 0 or max(numbers) > MAX_FIELD:
        raise CorruptError(
            f"/{printable(entry.name)}: an owner or device number is not between 0 and {MAX_FIELD}",
            "Leave the file out, or change its owner.",
        )
    if entry.filesize > MAX_FIELD:
        raise CorruptError(
            f"/{printable(entry.name)} has {entry.filesize} bytes; a file in a cpio archive can"
            f" have at most {MAX_FIELD}",
            'Leave the file out, or build a disk image with strategy = "oci_rootfs".',
        )
    link_too_long = S_IFMT(entry.mode) == S_IFLNK and entry.filesize >= MAX_PATH
    if len(entry.name) >= MAX_PATH or link_too_long:
        what = "link target" if link_too_long else "path"
        raise CorruptError(
            f"/{printable(entry.name[:200])}: the {what} is longer than the {MAX_PATH - 1} bytes"
            " that Linux unpacks",
            f"Leave the file out, or shorten the {what}.",
        )


def padding(size: int) -> int:
    """Return the number of NULs that pad ``size`` bytes to a multiple of 4."""
    return -size % 4
