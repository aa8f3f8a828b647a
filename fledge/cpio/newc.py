"""Writes the "new ASCII" cpio format: a tree as an archive.

The format is described in cpio(5) of libarchive and in the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from stat import S_IFLNK, S_IFMT

import msgspec

from fledge.errors import CorruptError
from fledge.tree import NANOSECONDS, Device, Directory, File, Node, Symlink, Tree
from fledge.tree.content import Content, content_size, read_content
from fledge.tree.limits import MAX_PATH
from fledge.tree.names import printable

MAX_FIELD = 0xFFFFFFFF
"""Every field of a header is eight hexadecimal digits."""

MAGIC = b"070701"
HEADER = MAGIC + 13 * b"%08X"
HEADER_SIZE = 110
TRAILER = b"TRAILER!!!"
BLOCK_SIZE = 512


class Entry(msgspec.Struct, frozen=True):
    """One header of an archive with its name; the fields have the names of cpio(5)."""

    name: bytes
    ino: int
    mode: int
    uid: int = 0
    gid: int = 0
    nlink: int = 1
    mtime: int = 0
    filesize: int = 0
    devmajor: int = 0
    devminor: int = 0
    rdevmajor: int = 0
    rdevminor: int = 0
    check: int = 0

    def pack(self) -> bytes:
        """The header and the padded name as they stand in the archive."""
        size = len(self.name) + 1
        header = HEADER % (
            *(self.ino, self.mode, self.uid, self.gid, self.nlink, self.mtime, self.filesize),
            *(self.devmajor, self.devminor, self.rdevmajor, self.rdevminor, size, self.check),
        )
        return header + self.name + b"\0" * (1 + padding(HEADER_SIZE + size))


def write(tree: Tree) -> Iterator[bytes]:
    """The archive of a tree, in pieces.

    Entries come in the order of `Tree.walk`, the root as ``.``. Inodes count from 1 on
    device 0. As in GNU cpio a regular file with several names has its data at the last one.
    Times are whole seconds within the format's 1970 to 2106. Extended attributes have no
    place in the format. Raises `CorruptError`, with the path, for what does not fit.
    """
    names = Counter(node for _, node in tree.walk() if not isinstance(node, Directory))
    left = dict(names)
    inodes: dict[Node, int] = {}
    offset = 0
    for path, node in tree.walk():
        ino = inodes.setdefault(node, len(inodes) + 1)
        if isinstance(node, Directory):
            nlink = node.links
            last = True
        else:
            nlink = names[node]
            left[node] -= 1
            last = left[node] == 0
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
            "Leave it out, or give it another owner.",
        )
    if entry.filesize > MAX_FIELD:
        raise CorruptError(
            f"/{printable(entry.name)} has {entry.filesize} bytes; a file in a cpio archive can"
            f" have {MAX_FIELD} at most",
            'Leave the file out, or build a disk image with strategy = "oci_rootfs".',
        )
    link_too_long = S_IFMT(entry.mode) == S_IFLNK and entry.filesize >= MAX_PATH
    if len(entry.name) >= MAX_PATH or link_too_long:
        what = "link target" if link_too_long else "path"
        raise CorruptError(
            f"/{printable(entry.name[:200])}: the {what} is longer than the {MAX_PATH - 1} bytes"
            " that Linux unpacks",
            "Leave it out, or give it a shorter one.",
        )


def padding(size: int) -> int:
    """How many zeros follow what ends after ``size`` bytes."""
    return -size % 4
