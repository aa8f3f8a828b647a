"""Reads an initramfs as the kernel does: one archive after another, each plain or compressed.

The format is described in Documentation/driver-api/early-userspace/buffer-format.rst of the
kernel. Where that is silent, this module follows init/initramfs.c. It keeps only headers, names
and the targets of symlinks in memory.
"""

from __future__ import annotations

import os
import struct
from binascii import unhexlify
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK
from typing import BinaryIO

import msgspec

from fledge.cpio.newc import FIELDS, HEADER_SIZE, MAGIC, MAX_FIELD, TRAILER, Entry, padding
from fledge.errors import CorruptError, FledgeError, MalformedError, reason
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
from fledge.tree.budget import Budget
from fledge.tree.compression import (
    GZIP_MAGIC,
    INPUT_SIZE,
    LZ4_MAGIC,
    MAX_DECOMPRESSED_SIZE,
    XZ_MAGIC,
    ZSTD_MAGIC,
    Decompressor,
    gunzip,
    lz4_blocks,
    member,
    unxz,
    unzstd,
)
from fledge.tree.content import OpenFile, Span, read_content
from fledge.tree.limits import MAX_NAME, MAX_PATH
from fledge.tree.names import MAX_SHOWN, printable, split_path

MAGIC_WITH_CHECKSUM = b"070702"
_HEADER_FIELDS = struct.Struct(f">{len(FIELDS)}I")

Decompress = Callable[[bytes, Iterator[bytes]], Generator[bytes, None, bytes]]
"""Decompresses the first bytes and the pieces that follow, as `member` does."""


def _member_by(new: Callable[[], Decompressor]) -> Decompress:
    return lambda start, pieces: member(start, pieces, new())


COMPRESSIONS: tuple[tuple[str, bytes, Decompress], ...] = (
    ("gzip", GZIP_MAGIC, _member_by(gunzip)),
    ("zstd", ZSTD_MAGIC, _member_by(unzstd)),
    ("xz", XZ_MAGIC, _member_by(unxz)),
    ("lz4", LZ4_MAGIC, lz4_blocks),
)
UNSUPPORTED_COMPRESSIONS = {
    b"BZh": "bzip2",
    b"]\0\0": "lzma",
    b"\x89LZO": "lzo",
    b'\x04"M\x18': "lz4 without -l, which no kernel can read,",
}
"""Other compressions, by magic number. A kernel may support them (lib/decompress.c)."""

ENTRY_COST = 800
"""Bytes of memory that an entry takes, or a directory without one."""

MAX_ARCHIVES = 1000
"""Maximum number of archives in an initramfs. Three are usual."""


class Archive(msgspec.Struct, frozen=True):
    """One archive of an initramfs. Sizes and offsets are in bytes."""

    offset: int
    """Where the archive begins in the file; of a compressed archive, where its compressed data
    begins."""
    compression: str | None
    """The name of one of `COMPRESSIONS`; None if the archive is not compressed."""
    size: int
    """The uncompressed size."""
    entries: int
    """The number of entries, without the trailer."""
    data: Span
    """The uncompressed archive."""
    has_trailer: bool
    """Whether it ends with a trailer. The kernel needs none."""


class Unpacked(msgspec.Struct, frozen=True):
    """The content of an initramfs."""

    tree: Tree
    archives: list[Archive] = msgspec.field(default_factory=list)
    headers: dict[Node, Entry] = msgspec.field(default_factory=dict)
    """The last header of each node. Directories without an entry have none."""
    sockets: list[bytes] = msgspec.field(default_factory=list)
    """The paths of sockets, which a tree cannot contain."""


def has_magic_number(data: bytes) -> bool:
    """Return whether ``data`` begins with the magic number of an archive or a compression."""
    return data.startswith(
        (b"0707", *(magic for _, magic, _ in COMPRESSIONS), *UNSUPPORTED_COMPRESSIONS)
    )


def read(path: Path, folder: Path) -> Unpacked:
    """Read the initramfs at ``path``. Compressed archives are unpacked to a file in ``folder``.

    Contents refer to one of these files. Entries of later archives replace those of earlier ones.
    If a parent directory is missing, the kernel skips the entry; this function makes the
    directory, as ``cpio -d`` does. Raises `CorruptError` if the initramfs is damaged or exceeds
    `MAX_DECOMPRESSED_SIZE` or a `Budget`; `FledgeError` if it cannot be read.
    """
    unpacked = folder / "unpacked.cpio"
    try:
        with path.open("rb") as file, unpacked.open("w+b") as output:
            return _Reader(path, file, unpacked, output).read()
    except MalformedError as error:
        raise CorruptError(f"{path}: {error}", "Build or copy it again.") from error
    except OSError as error:
        raise FledgeError(
            f"{path} could not be read: {reason(error)}",
            f"Compressed archives are unpacked in {folder}; TMPDIR chooses another folder.",
        ) from error


def read_entries(file: BinaryIO, archive: Span) -> Iterator[tuple[Entry, Span]]:
    """Yield the entries of an uncompressed archive with their data, the trailer included.

    ``file`` is the file of the archive, open for reading. The caller may seek in it between two
    entries. Raises `CorruptError`.
    """
    path = archive.path
    try:
        yield from _entries(file, path, archive.offset, archive.offset + archive.size)
    except MalformedError as error:
        raise CorruptError(f"{path}: {error}") from error


class _Reader:
    """Reads the archives of one initramfs into a tree.

    ``file`` is the initramfs at ``path``; ``output`` is the empty file ``unpacked``, which gets
    all uncompressed archives.
    """

    def __init__(self, path: Path, file: BinaryIO, unpacked: Path, output: BinaryIO) -> None:
        self._path, self._file = path, file
        self._unpacked, self._output = unpacked, output
        self._result = Unpacked(Tree(mtime_ns=0))
        self._budget = Budget()

    def read(self) -> Unpacked:
        position = _next_nonzero(self._file, 0)
        while position is not None:
            position = _next_nonzero(self._file, self._read_part(position))
        if not self._result.archives:
            raise MalformedError("it contains no archive")
        self._check_paths()
        return self._result

    def _check_paths(self) -> None:
        """Limit the paths in the tree: symlinks can make them longer than the names of entries."""
        for path, _ in self._result.tree.walk():
            if len(path) >= MAX_PATH:
                shown = printable(path[:MAX_SHOWN])
                raise MalformedError(f"{shown}…: the path is longer than {MAX_PATH - 1} bytes")
        self._budget.charge_paths(self._result.tree)

    def _read_part(self, position: int) -> int:
        """Read the archive or compressed data at ``position``, and return where it ends."""
        self._file.seek(position)
        start = self._file.read(INPUT_SIZE)
        if start.startswith(b"0"):
            return self._read_archive(self._file, self._path, position)
        for name, magic, decompress in COMPRESSIONS:
            if start.startswith(magic):
                try:
                    begin, end = self._decompress(start, decompress)
                    self._check_is_archive(begin, name)
                    self._read_member(begin, name, position)
                except (MalformedError, CorruptError) as error:
                    problem = error.message if isinstance(error, CorruptError) else error
                    raise MalformedError(
                        f"the {name} data at byte {position}: {problem}"
                    ) from error
                return end
        for magic, name in UNSUPPORTED_COMPRESSIONS.items():
            if start.startswith(magic):
                raise FledgeError(
                    f"{self._path} is compressed with {name} at byte {position}, which fledge"
                    " cannot read",
                    "Decompress it first.",
                )
        raise MalformedError(
            f"neither a cpio archive nor compressed data begins at byte {position}"
        )

    def _check_is_archive(self, begin: int, compression: str) -> None:
        """Raise `FledgeError` if no archive begins at the first byte that is not 0."""
        first = _next_nonzero(self._output, begin)
        self._output.seek(first or begin)
        if first is not None and self._output.read(1) != MAGIC[:1]:
            raise FledgeError(
                f"{self._path} is compressed with {compression}, but there is no cpio archive"
                " in it",
                "If it is a disk, decompress it first; otherwise, build or copy it again.",
            )

    def _decompress(self, start: bytes, decompress: Decompress) -> tuple[int, int]:
        """Decompress one member. Return where its output begins, and where the member ends."""
        output = self._output
        begin = output.seek(0, os.SEEK_END)
        begin = output.seek(begin + padding(begin))
        rest = b""

        def pieces() -> Iterator[bytes]:
            nonlocal rest
            source = iter(partial(self._file.read, INPUT_SIZE), b"")
            rest = yield from decompress(start, source)

        for piece in pieces():
            output.write(piece)
            if output.tell() > MAX_DECOMPRESSED_SIZE:
                raise MalformedError(f"it is larger than {human_size(MAX_DECOMPRESSED_SIZE)}")
        output.flush()
        return begin, self._file.tell() - len(rest)

    def _read_member(self, begin: int, compression: str, offset: int) -> None:
        """Read the archives of one compressed member. No archive continues in the next member."""
        position: int | None = begin
        while position is not None:
            end = self._read_archive(self._output, self._unpacked, position, compression, offset)
            position = _next_nonzero(self._output, end)

    def _read_archive(
        self,
        file: BinaryIO,
        path: Path,
        start: int,
        compression: str | None = None,
        offset: int | None = None,
    ) -> int:
        """Read the uncompressed archive at ``start`` into the tree, and return where it ends.

        ``offset`` is that of the compressed data; None: the archive is not compressed.
        """
        linked: dict[tuple[object, ...], Node] = {}
        count = 0
        position = start
        if start % 4:
            raise MalformedError(f"the archive at byte {start} is not aligned to 4 bytes")
        if len(self._result.archives) == MAX_ARCHIVES:
            raise MalformedError(f"it contains more than {MAX_ARCHIVES} archives")
        size = os.fstat(file.fileno()).st_size
        has_trailer = False
        opened = OpenFile(os.dup(file.fileno()))
        for entry, data in _entries(file, path, start, size, opened):
            end = min(data.offset + data.size + padding(data.size), size)
            if entry.name == TRAILER:
                has_trailer = True
                break
            count += 1
            self._budget.grow(end - position)
            position = end
            try:
                self._add_entry(entry, data, linked)
                self._result.tree.check_steps(since=0)
            except TreeError as error:
                raise MalformedError(f"{printable(entry.name)}: {error}") from error
        where = start if offset is None else offset
        self._result.archives.append(
            Archive(
                where, compression, end - start, count, Span(path, start, end - start), has_trailer
            )
        )
        return end

    def _add_entry(self, entry: Entry, data: Span, linked: dict[tuple[object, ...], Node]) -> None:
        """Add an entry to the tree, as init/initramfs.c does: it writes to an existing node of the
        same type, and replaces a node of another type.
        """
        parts = split_path(entry.name)
        if any(len(part) > MAX_NAME for part in parts):
            raise TreeError(f"a component of its name is longer than {MAX_NAME} bytes")
        file_type = S_IFMT(entry.mode)
        target_size = data.size if file_type == S_IFLNK else 0
        self._budget.charge(ENTRY_COST + len(entry.name) + target_size)
        if file_type == S_IFSOCK:
            self._result.sockets.append(b"/".join(parts))
            return
        new = _make_node(entry, data)
        tree = self._result.tree
        if not parts:
            if not isinstance(new, Directory):
                raise TreeError("the root must be a directory")
            self._set_metadata(tree.root, entry)
            return
        created = tree.created
        parent, name = tree.make_directory(parts[:-1]), parts[-1]
        self._budget.charge(ENTRY_COST * (tree.created - created))
        old = parent.children.get(name)
        if isinstance(old, Directory) and old.children and not isinstance(new, Directory):
            return
        node = old if type(old) is type(new) and not isinstance(new, Symlink) else new
        first = True
        if entry.nlink > 1 and not isinstance(new, Directory):
            # The kernel does not link symlinks: each name is a symlink with its own target.
            target = new.target if isinstance(new, Symlink) else None
            identity = entry.devmajor, entry.devminor, entry.ino, file_type, target
            first = identity not in linked
            node = linked.setdefault(identity, node)
        if isinstance(node, File) and (first or data.size):
            node.content = data
        parent.children[name] = node
        self._set_metadata(node, entry)

    def _set_metadata(self, node: Node, entry: Entry) -> None:
        """Set the metadata of a node."""
        node.mode, node.uid, node.gid = entry.mode & 0o7777, entry.uid, entry.gid
        node.mtime_ns = entry.mtime * NANOSECONDS
        self._result.headers[node] = entry


def _make_node(entry: Entry, data: Span) -> Node:
    """Make a node of the entry's type, without the metadata that all types have.

    An entry has data only if it is a file or a symlink. The kernel skips others that have data;
    here they are an error.
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
    # gen_init_cpio of the kernel includes a final NUL in the target.
    target = b"".join(read_content(data)) if data.size <= MAX_PATH else b""
    target = target.removesuffix(b"\0")
    if file_type == S_IFLNK and 0 < len(target) < MAX_PATH and b"\0" not in target:
        return Symlink(target=target)
    raise TreeError(f"mode {entry.mode:o} with {data.size} bytes of data is not a valid entry")


def _entries(
    file: BinaryIO, path: Path, start: int, size: int, opened: OpenFile | None = None
) -> Iterator[tuple[Entry, Span]]:
    """Do the work of `read_entries` for an archive that ends before ``size``, if it has no trailer
    there or with zeros up to there. ``opened`` is as in `Span`. Raises `MalformedError`.
    """
    position = start
    while position == start or not _ends(file, position, size):
        file.seek(position)
        try:
            entry, has_checksum = _read_header(file)
        except MalformedError as error:
            raise MalformedError(f"invalid cpio entry at byte {position}: {error}") from error
        data = Span(path, file.tell(), entry.filesize, opened=opened)
        end = data.offset + data.size
        if end > size:
            raise MalformedError(f"the archive ends within the data of {printable(entry.name)}")
        # Only the last name of a file has its data, but every name may have its checksum.
        if has_checksum and data.size and S_IFMT(entry.mode) == S_IFREG:
            total = sum(sum(piece) for piece in read_content(data))
            if total & MAX_FIELD != entry.check:
                raise MalformedError(f"the checksum of {printable(entry.name)} is wrong")
        yield entry, data
        if entry.name == TRAILER:
            return
        position = end + padding(data.size)


def _read_header(file: BinaryIO) -> tuple[Entry, bool]:
    """Read a header with its name. Return the entry, and whether it has a checksum."""
    header = file.read(HEADER_SIZE)
    magic = header[: len(MAGIC)]
    if len(header) < HEADER_SIZE or magic not in (MAGIC, MAGIC_WITH_CHECKSUM):
        problem = "the archive ends within a header"
        if len(header) == HEADER_SIZE:
            problem = f"the magic is {magic!r}, not 070701"
        raise MalformedError(problem)
    try:
        numbers = _HEADER_FIELDS.unpack(unhexlify(header[len(MAGIC) :]))
    except ValueError as error:
        raise MalformedError("a field is not a hexadecimal number") from error
    fields = dict(zip(FIELDS, numbers, strict=True))
    name_size = fields.pop("namesize")
    if not 1 < name_size <= MAX_PATH:
        raise MalformedError(f"the name is {name_size} bytes long")
    name = file.read(name_size)
    if len(name) < name_size or name.find(b"\0") != name_size - 1:
        raise MalformedError("the name is cut short")
    file.seek(padding(HEADER_SIZE + name_size), os.SEEK_CUR)
    return Entry(name[:-1], **fields), magic == MAGIC_WITH_CHECKSUM


def _next_nonzero(file: BinaryIO, position: int) -> int | None:
    """Return the position of the next nonzero byte; None if only zeros are left."""
    file.seek(position)
    while piece := file.read(INPUT_SIZE):
        if rest := piece.lstrip(b"\0"):
            return file.tell() - len(rest)
    return None


def _ends(file: BinaryIO, position: int, size: int) -> bool:
    """Return whether an archive without a trailer ends at a position: only zeros follow."""
    file.seek(position)
    if position < size and file.read(1) != b"\0":
        return False
    rest = _next_nonzero(file, position)
    return rest is None or rest >= size
