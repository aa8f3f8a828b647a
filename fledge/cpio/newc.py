"""The "new ASCII" cpio format: a tree to an archive and back.

The format is described in cpio(5) of libarchive and in the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import os
import struct
from binascii import unhexlify
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG
from typing import BinaryIO

from fledge.content import Content, Span, content_size, read_content
from fledge.errors import CorruptError
from fledge.tree import (
    MAX_PATH,
    BlockDevice,
    CharDevice,
    Device,
    Directory,
    Fifo,
    File,
    Node,
    Symlink,
    Tree,
    TreeError,
    printable,
)

MAX_FIELD = 0xFFFFFFFF
"""Every field of a header is eight hexadecimal digits."""

MAGIC = b"070701"
MAGIC_WITH_CHECKSUM = b"070702"
HEADER = MAGIC + 13 * b"%08X"
HEADER_SIZE = 110
TRAILER = b"TRAILER!!!"
BLOCK_SIZE = 512


@dataclass(frozen=True, slots=True)
class Entry:
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
        return header + self.name + b"\0" * (1 + _padding(HEADER_SIZE + size))


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
            nlink = 2 + sum(isinstance(child, Directory) for child in node.children.values())
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
            mtime=min(max(node.mtime_ns // 1_000_000_000, 0), MAX_FIELD),
            filesize=content_size(data),
            rdevmajor=node.major if isinstance(node, Device) else 0,
            rdevminor=node.minor if isinstance(node, Device) else 0,
        )
        _check_fits(entry)
        header = entry.pack()
        yield header
        yield from read_content(data)
        padding = _padding(entry.filesize)
        yield b"\0" * padding
        offset += len(header) + entry.filesize + padding
    trailer = Entry(name=TRAILER, ino=0, mode=0).pack()
    yield trailer
    yield b"\0" * (-(offset + len(trailer)) % BLOCK_SIZE)


def read_entries(path: Path) -> Iterator[tuple[Entry, Span]]:
    """The entries of an uncompressed archive and where their data is, up to the trailer.

    Nothing but headers and names is held in memory. A checksum (magic 070702) is not verified.
    The kernel would unpack another archive behind the first, so anything but zeros there is an
    error. Raises `CorruptError`, or `OSError` if the file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while True:
            start = file.tell()
            try:
                entry = _read_entry(file)
            except ValueError as error:
                raise CorruptError(f"{path}: no cpio entry at byte {start}: {error}") from None
            data = Span(path, file.tell(), entry.filesize)
            if data.offset + data.size > size:
                raise CorruptError(
                    f"{path}: the archive ends within the data of {printable(entry.name)}"
                )
            if entry.name == TRAILER:
                if _holds_more(file):
                    raise CorruptError(f"{path}: there is more after the trailer of the archive")
                return
            yield entry, data
            file.seek(data.offset + data.size + _padding(data.size))


def read_tree(path: Path) -> Tree:
    """The tree of an uncompressed archive; file contents are spans of it.

    Raises `CorruptError` for a malformed archive or entries that make no tree.
    """
    tree = Tree(mtime_ns=0)
    linked: dict[tuple[int, int, int], Node] = {}
    for entry, data in read_entries(path):
        identity = (entry.devmajor, entry.devminor, entry.ino)
        hard_link = entry.nlink > 1 and S_IFMT(entry.mode) != S_IFDIR
        node = linked.get(identity) if hard_link else None
        if node is None or S_IFMT(entry.mode) != node.file_type:
            node = _node(entry, data, path)
            if hard_link:
                linked[identity] = node
        elif isinstance(node, File) and data.size:
            node.content = data
        try:
            tree.add(entry.name, node)
        except TreeError as error:
            raise CorruptError(f"{path}: {printable(entry.name)}: {error}") from None
    return tree


def _node(entry: Entry, data: Span, archive: Path) -> Node:
    mode = entry.mode & 0o7777
    mtime_ns = entry.mtime * 1_000_000_000
    file_type = S_IFMT(entry.mode)
    if file_type == S_IFDIR:
        return Directory(mode=mode, uid=entry.uid, gid=entry.gid, mtime_ns=mtime_ns)
    if file_type == S_IFREG:
        return File(mode=mode, uid=entry.uid, gid=entry.gid, mtime_ns=mtime_ns, content=data)
    if file_type == S_IFIFO:
        return Fifo(mode=mode, uid=entry.uid, gid=entry.gid, mtime_ns=mtime_ns)
    if file_type in (S_IFCHR, S_IFBLK):
        kind = CharDevice if file_type == S_IFCHR else BlockDevice
        return kind(
            mode=mode,
            uid=entry.uid,
            gid=entry.gid,
            mtime_ns=mtime_ns,
            major=entry.rdevmajor,
            minor=entry.rdevminor,
        )
    target = b"".join(read_content(data)) if data.size < MAX_PATH else b""
    if file_type == S_IFLNK and target and b"\0" not in target:
        return Symlink(mode=mode, uid=entry.uid, gid=entry.gid, mtime_ns=mtime_ns, target=target)
    raise CorruptError(
        f"{archive}: {printable(entry.name)}: mode {entry.mode:o} and {data.size} bytes of data"
        " are no file that can be read"
    )


def _read_entry(file: BinaryIO) -> Entry:
    header = file.read(HEADER_SIZE)
    if len(header) < HEADER_SIZE:
        raise ValueError("the archive ends without a trailer")
    if header[:6] not in (MAGIC, MAGIC_WITH_CHECKSUM):
        raise ValueError(f"the magic is {header[:6]!r}, not 070701")
    try:
        values = list(struct.unpack(">13I", unhexlify(header[6:])))
    except ValueError:
        raise ValueError("a field is no hexadecimal number") from None
    name_size = values.pop(11)
    if not 1 < name_size <= MAX_PATH:
        raise ValueError(f"the name is {name_size} bytes long")
    name = file.read(name_size)
    if len(name) < name_size or name.find(b"\0") != name_size - 1:
        raise ValueError("the name is cut short")
    file.seek(_padding(HEADER_SIZE + name_size), os.SEEK_CUR)
    return Entry(name[:-1], *values)


def _holds_more(file: BinaryIO) -> bool:
    while piece := file.read(1 << 16):
        if piece.strip(b"\0"):
            return True
    return False


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


def _padding(size: int) -> int:
    return -size % 4
