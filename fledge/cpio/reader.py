"""An initramfs as the kernel unpacks it: archives one after another, each plain or compressed.

Documentation/driver-api/early-userspace/buffer-format.rst of the kernel, and what
init/initramfs.c does where that is silent. Nothing but headers, names and the targets of
symlinks is held in memory.
"""

from __future__ import annotations

import os
import struct
from binascii import unhexlify
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK
from typing import BinaryIO

import msgspec

from fledge.cpio.newc import HEADER_SIZE, MAGIC, MAX_FIELD, TRAILER, Entry, padding
from fledge.errors import CorruptError, FledgeError, reason
from fledge.report import human_size
from fledge.tree import (
    NANOSECONDS,
    BlockDevice,
    CharDevice,
    Directory,
    Fifo,
    File,
    Node,
    Symlink,
    Tree,
    TreeError,
)
from fledge.tree.compression import (
    GZIP_MAGIC,
    INPUT_SIZE,
    MAX_SIZE,
    XZ_MAGIC,
    ZSTD_MAGIC,
    Decompressor,
    gunzip,
    member,
    unxz,
    unzstd,
)
from fledge.tree.content import Span, read_content
from fledge.tree.limits import MAX_NAME, MAX_PATH
from fledge.tree.names import MAX_SHOWN, printable, split_path

MAGIC_WITH_CHECKSUM = b"070702"

COMPRESSIONS: tuple[tuple[str, bytes, Callable[[], Decompressor]], ...] = (
    ("gzip", GZIP_MAGIC, gunzip),
    ("zstd", ZSTD_MAGIC, unzstd),
    ("xz", XZ_MAGIC, unxz),
)
UNREADABLE = {
    b"BZh": "bzip2",
    b"]\0\0": "lzma",
    b"\x89LZO": "lzo",
    b"\x02!L\x18": "lz4",
    b'\x04"M\x18': "lz4",
}
"""What a kernel may know besides (lib/decompress.c)."""

MAX_KEPT = 1 << 30
"""Bytes of memory, roughly, that an initramfs may need: two million names in paths. Large ones
have some thousand."""
NAME_COST = 512
"""What each name in a path counts, for a directory may have to be made for it."""

MAX_ARCHIVES = 1000
"""Archives of an initramfs; there are hardly more than three."""


class Archive(msgspec.Struct, frozen=True):
    """One archive of an initramfs. Sizes and positions are bytes."""

    offset: int
    """Where it begins in the file, or what it is compressed in."""
    compression: str | None
    """One of `COMPRESSIONS`."""
    size: int
    """Uncompressed."""
    entries: int
    """Without the trailer."""
    data: Span
    """Its bytes, uncompressed."""


class Initramfs(msgspec.Struct, frozen=True):
    """All that an initramfs holds."""

    tree: Tree
    archives: list[Archive] = msgspec.field(default_factory=list)
    headers: dict[Node, Entry] = msgspec.field(default_factory=dict)
    """The last that each node has; directories that no archive has are missing."""
    sockets: list[bytes] = msgspec.field(default_factory=list)
    """Paths of sockets, which are not in the tree: they mean nothing without their process."""


def is_start(data: bytes) -> bool:
    """Whether a file that begins so can only be meant as an initramfs."""
    return data.startswith((b"0707", *(magic for _, magic, _ in COMPRESSIONS), *UNREADABLE))


def read(path: Path, folder: Path) -> Initramfs:
    """The initramfs in the file at ``path``; contents refer to it, or to a file in ``folder``.

    A later archive lies over those before it. What the kernel would leave out for want of a
    directory gets one, as with ``cpio -d``. Raises `CorruptError` for what is damaged, or larger
    than `compression.MAX_SIZE` or `MAX_KEPT`; `FledgeError` for what cannot be read.
    """
    unpacked = folder / "unpacked.cpio"
    try:
        with path.open("rb") as file, unpacked.open("w+b") as output:
            return _Reader(path, file, unpacked, output).read()
    except _Malformed as error:
        raise CorruptError(f"{path}: {error}", "Build or copy it again.") from None
    except OSError as error:
        raise FledgeError(
            f"{path} could not be read: {reason(error)}",
            f"Its archives are unpacked in {folder}; TMPDIR names another place.",
        ) from error


def read_entries(file: BinaryIO, path: Path, position: int = 0) -> Iterator[tuple[Entry, Span]]:
    """The entries of an uncompressed archive and where their data is, the trailer last.

    ``file`` is open at ``path`` and may be moved between two entries. Raises `CorruptError`.
    """
    try:
        yield from _entries(file, path, position)
    except _Malformed as error:
        raise CorruptError(f"{path}: {error}") from None


class _Malformed(Exception):
    """What is wrong. The caller knows in which file."""


class _Reader:
    def __init__(self, path: Path, file: BinaryIO, unpacked: Path, output: BinaryIO) -> None:
        self._path, self._file = path, file
        self._unpacked, self._output = unpacked, output
        self._found = Initramfs(Tree(mtime_ns=0))
        self._kept = 0

    def read(self) -> Initramfs:
        position = _next_byte(self._file, 0)
        while position is not None:
            position = _next_byte(self._file, self._lay(position))
        if not self._found.archives:
            raise _Malformed("there is no archive in it")
        self._check_paths()
        return self._found

    def _check_paths(self) -> None:
        """Whoever walks the tree keeps its paths, and symlinks can make them longer than names."""
        for path, node in self._found.tree.walk():
            if len(path) >= MAX_PATH:
                shown = printable(path[:MAX_SHOWN])
                raise _Malformed(f"{shown}…: the path is longer than {MAX_PATH - 1} bytes")
            if isinstance(node, Directory):
                self._charge(len(node.children) * len(path))

    def _charge(self, count: int) -> None:
        self._kept += count
        if self._kept > MAX_KEPT:
            raise _Malformed(f"there are more than {MAX_KEPT} bytes of metadata")

    def _lay(self, position: int) -> int:
        """Lay what begins there over the tree; returns where it ends."""
        self._file.seek(position)
        start = self._file.read(INPUT_SIZE)
        if start.startswith(b"0"):
            return self._lay_archive(self._file, self._path, position)
        for name, magic, new in COMPRESSIONS:
            if start.startswith(magic):
                try:
                    begin, end = self._decompress(start, new())
                    self._lay_decompressed(begin, name, position)
                except (_Malformed, CorruptError) as error:
                    raise _Malformed(f"what is {name} from byte {position} on: {error}") from None
                return end
        for magic, name in UNREADABLE.items():
            if start.startswith(magic):
                raise FledgeError(
                    f"{self._path} is compressed with {name} from byte {position} on, which"
                    " fledge cannot read",
                    "Decompress it first.",
                )
        raise _Malformed(f"there is no cpio archive at byte {position}, nor a compressed one")

    def _decompress(self, start: bytes, decompressor: Decompressor) -> tuple[int, int]:
        """Returns where the output of one member begins, and where the member ends."""
        output = self._output
        begin = output.seek(0, os.SEEK_END)
        begin = output.seek(begin + padding(begin))
        rest = b""

        def pieces() -> Iterator[bytes]:
            nonlocal rest
            source = iter(partial(self._file.read, INPUT_SIZE), b"")
            rest = yield from member(start, source, decompressor)

        for piece in pieces():
            output.write(piece)
            if output.tell() > MAX_SIZE:
                raise _Malformed(f"it is larger than {human_size(MAX_SIZE)}")
        output.flush()
        return begin, self._file.tell() - len(rest)

    def _lay_decompressed(self, begin: int, compression: str, offset: int) -> None:
        """Lay all archives of one compressed member: an archive cannot go on in the next."""
        position: int | None = begin
        while position is not None:
            end = self._lay_archive(self._output, self._unpacked, position, compression, offset)
            position = _next_byte(self._output, end)

    def _lay_archive(
        self,
        file: BinaryIO,
        path: Path,
        start: int,
        compression: str | None = None,
        offset: int | None = None,
    ) -> int:
        """Returns where the archive ends that begins at ``start`` of an uncompressed file."""
        linked: dict[tuple[object, ...], Node] = {}
        count = 0
        if start % 4:
            raise _Malformed(f"the archive at byte {start} does not begin at a multiple of 4")
        if len(self._found.archives) == MAX_ARCHIVES:
            raise _Malformed(f"there are more than {MAX_ARCHIVES} archives in it")
        for entry, data in _entries(file, path, start):
            end = data.offset + data.size + padding(data.size)
            if entry.name == TRAILER:
                break
            count += 1
            try:
                self._lay_entry(entry, data, linked)
                self._found.tree.check_steps(since=0)
            except TreeError as error:
                raise _Malformed(f"{printable(entry.name)}: {error}") from None
        where = start if offset is None else offset
        self._found.archives.append(
            Archive(where, compression, end - start, count, Span(path, start, end - start))
        )
        return end

    def _lay_entry(self, entry: Entry, data: Span, linked: dict[tuple[object, ...], Node]) -> None:
        """As in init/initramfs.c: what is there and of the same type stays and is written to."""
        parts = split_path(entry.name)
        if any(len(part) > MAX_NAME for part in parts):
            raise TreeError(f"a component of its name is longer than {MAX_NAME} bytes")
        file_type = S_IFMT(entry.mode)
        self._charge(NAME_COST * (1 + len(parts)))
        self._charge(len(entry.name) + (data.size if file_type == S_IFLNK else 0))
        if file_type == S_IFSOCK:
            self._found.sockets.append(b"/".join(parts))
            return
        new = _node(entry, data)
        tree = self._found.tree
        if not parts:
            if not isinstance(new, Directory):
                raise TreeError("the root can only be a directory")
            self._describe(tree.root, entry)
            return
        parent, name = tree.make_directory(parts[:-1]), parts[-1]
        old = parent.children.get(name)
        if isinstance(old, Directory) and old.children and not isinstance(new, Directory):
            return
        node = old if type(old) is type(new) and not isinstance(new, Symlink) else new
        first = True
        if entry.nlink > 1 and not isinstance(new, Directory):
            # To the kernel each name of a symlink is one of its own, with its own target.
            target = new.target if isinstance(new, Symlink) else None
            identity = entry.devmajor, entry.devminor, entry.ino, file_type, target
            first = identity not in linked
            node = linked.setdefault(identity, node)
        if isinstance(node, File) and (first or data.size):
            node.content = data
        parent.children[name] = node
        self._describe(node, entry)

    def _describe(self, node: Node, entry: Entry) -> None:
        node.mode, node.uid, node.gid = entry.mode & 0o7777, entry.uid, entry.gid
        node.mtime_ns = entry.mtime * NANOSECONDS
        self._found.headers[node] = entry


def _node(entry: Entry, data: Span) -> Node:
    """A node of the entry's type, with what is only in nodes of that type.

    Data of what has none is an error: the kernel passes over such an entry.
    """
    file_type = S_IFMT(entry.mode)
    if file_type == S_IFREG:
        return File(mode=0, content=data)
    if data.size == 0:
        if file_type == S_IFDIR:
            return Directory(mode=0)
        if file_type == S_IFIFO:
            return Fifo(mode=0)
        if file_type in (S_IFCHR, S_IFBLK):
            kind = CharDevice if file_type == S_IFCHR else BlockDevice
            return kind(mode=0, major=entry.rdevmajor, minor=entry.rdevminor)
    # The kernel's own gen_init_cpio counts the NUL that ends a target.
    target = b"".join(read_content(data)) if data.size <= MAX_PATH else b""
    target = target.removesuffix(b"\0")
    if file_type == S_IFLNK and 0 < len(target) < MAX_PATH and b"\0" not in target:
        return Symlink(target=target)
    raise TreeError(
        f"mode {entry.mode:o} and {data.size} bytes of data are no file that can be read"
    )


def _entries(file: BinaryIO, path: Path, position: int) -> Iterator[tuple[Entry, Span]]:
    size = os.fstat(file.fileno()).st_size
    while True:
        file.seek(position)
        try:
            entry, has_checksum = _read_entry(file)
        except ValueError as error:
            raise _Malformed(f"no cpio entry at byte {position}: {error}") from None
        data = Span(path, file.tell(), entry.filesize)
        end = data.offset + data.size
        if end > size:
            raise _Malformed(f"the archive ends within the data of {printable(entry.name)}")
        # Only the last name of a file has its data, but all may have its checksum.
        if has_checksum and data.size and S_IFMT(entry.mode) == S_IFREG:
            total = sum(sum(piece) for piece in read_content(data))
            if total & MAX_FIELD != entry.check:
                raise _Malformed(f"the checksum of {printable(entry.name)} is wrong")
        yield entry, data
        if entry.name == TRAILER:
            return
        position = end + padding(data.size)


def _read_entry(file: BinaryIO) -> tuple[Entry, bool]:
    """A header with its name, and whether its checksum means something."""
    header = file.read(HEADER_SIZE)
    magic = header[:6]
    if len(header) < HEADER_SIZE:
        raise ValueError("the archive ends without a trailer")
    if magic not in (MAGIC, MAGIC_WITH_CHECKSUM):
        raise ValueError(f"the magic is {magic!r}, not 070701")
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
    file.seek(padding(HEADER_SIZE + name_size), os.SEEK_CUR)
    return Entry(name[:-1], *values), magic == MAGIC_WITH_CHECKSUM


def _next_byte(file: BinaryIO, position: int) -> int | None:
    """Where the next byte is that is not zero, if there is one."""
    file.seek(position)
    while piece := file.read(INPUT_SIZE):
        if rest := piece.lstrip(b"\0"):
            return file.tell() - len(rest)
    return None
