"""Reads the headers of tar archives. The contents of files are spans of the archive.

Python's tarfile is not used: it reads extended headers of any size into memory, loses bytes of
extended attributes that are not UTF-8, and has mtimes only as floats.

The formats: POSIX pax (IEEE Std 1003.1, "pax", ustar and extended header) and GNU tar (its manual,
"Tar Internals"). Where they leave a choice, fledge does what Go's archive/tar does, because
containerd and umoci use that.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import msgspec
from isal.isal_zlib import adler32

from fledge.errors import CorruptError, MalformedError, unreadable
from fledge.tree import (
    NANOSECONDS,
    NO_XATTRS,
    BlockDevice,
    CharDevice,
    Directory,
    Fifo,
    File,
    Node,
    Symlink,
)
from fledge.tree.budget import DIRECTORY_COST, NODE_COST, Budget, xattrs_cost
from fledge.tree.content import Content, DataExtent, Span, Sparse, changed, open_content
from fledge.tree.growth import Growth
from fledge.tree.limits import (
    MAX_ID,
    MAX_MAJOR,
    MAX_MINOR,
    MAX_NAME,
    MAX_PATH,
    MAX_XATTR_SIZE,
    POSIX_ACLS,
)
from fledge.tree.names import printable

BLOCK_SIZE = 512
"""Bytes. Headers and padded contents are whole blocks."""
ZEROS = bytes(BLOCK_SIZE)

WINDOW_SIZE = 1 << 14
"""Bytes that are read at once. Most files are smaller, so that the next header is among them."""

SHARED_WINDOW_SIZE = 1 << 16
"""Bytes that are read at once while another thread writes the archive: with each read this one
gives up the interpreter's lock, and the threads would take turns for every file."""

MAX_EXTENDED = 1 << 20
"""Maximum bytes in one extended header, as in Go. Linux limits an extended attribute to 64 KiB."""

MAX_RECORDS = 1 << 14
"""Maximum records in one extended header, without those of a sparse map. Linux lists at most 64 KiB
of names of extended attributes for one file, which are fewer."""

RECORD_COST = 64
"""Bytes of memory that one record counts as: parsing it takes the time of so many."""

MAX_EXTENTS = 1 << 16
"""Maximum runs of data in one sparse file, which limits the time and memory to write it."""

EXTENT_COST = 800
"""Bytes of memory that one run of data in a sparse file takes at the peak of a build."""

MAX_FILE_SIZE = 1 << 44
"""16 TiB, the largest file on ext4. The header of a sparse file could claim any size."""

MAX_DIGITS = 19
"""Maximum decimal digits in a number, enough for 63 bits."""

DECIMAL = re.compile(rb"([+-]?)0*(\d{1,%d})" % MAX_DIGITS)
"""A decimal number in an extended header, as Go accepts it."""

# The ustar header (offset, size):
#   name (0, 100)   mode (100, 8)       uid (108, 8)       gid (116, 8)      size (124, 12)
#   mtime (136, 12) checksum (148, 8)   typeflag (156, 1)  linkname (157, 100)
#   magic and version (257, 8)          uname (265, 32)    gname (297, 32)
#   devmajor (329, 8)                   devminor (337, 8)  prefix (345, 155)
HEADER = struct.Struct("100s24s12s12s8sc100s8s80x155s12x")
"""The fields that every entry needs: name; mode, uid and gid in one; size, mtime, checksum,
typeflag, linkname, magic and version in one, prefix."""
MAJOR, MINOR = slice(329, 337), slice(337, 345)
# Where the formats differ, told apart as in Go (offset, size):
#   ustar  magic "ustar\0", any version     prefix (345, 155)
#   star   as ustar, "tar\0" (508, 4)       prefix (345, 131)  atime (476, 12)  ctime (488, 12)
#   GNU    magic and version "ustar  \0"    atime (345, 12)    ctime (357, 12)
#                                           sparse map (386, 97)  size of the file (483, 12)
#   V7     anything else                    neither prefix nor device numbers
POSIX_MAGIC = b"ustar\0"
GNU_MAGIC = b"ustar  \0"
STAR_TRAILER = slice(508, 512), b"tar\0"
STAR_PREFIX_SIZE = 131
GNU_TIMES = slice(0, 12), slice(12, 24)
"""GNU's atime and ctime, as parts of the prefix of ustar."""
ADLER_MODULUS = 65521
MANY_VALUES = 1 << 13
"""Maximum values of one field that are kept parsed, because many entries have the same."""
SPARSE_ENTRY = struct.Struct("12s12s")
"""Offset and length of a run of data in GNU's old sparse format."""

EXTENDED = b"x"
GLOBAL = b"g"
LONG_NAME = b"L"
LONG_LINK = b"K"
NEWLINE = ord("\n")
BEFORE_ENTRY = frozenset((EXTENDED, LONG_NAME, LONG_LINK))
NO_ENTRY = frozenset((GLOBAL, b"V"))
"""V is the label of a GNU volume."""
HARD_LINK = b"1"
OLD_REGULAR = b"\0"
GNU_SPARSE = b"S"
REGULAR = (b"0", OLD_REGULAR, b"7", GNU_SPARSE)
"""7 is "contiguous", which POSIX lets a reader treat as a regular file."""

PAX_TIME = re.compile(rb"([+-]?)0{0,40}(\d{1,18})(?:\.(\d{0,40}))?")
"""Seconds and their fraction. The length is limited because `_mtime_ns` caches these texts."""

ORDINARY = frozenset(b"path linkpath size uid gid uname gname mtime atime ctime".split())
"""The keywords in most extended headers: no sparse map, and no extended attribute."""
XATTR = b"SCHILY.xattr."
SPARSE_OFFSET = b"GNU.sparse.offset"
SPARSE_LENGTH = b"GNU.sparse.numbytes"
NO_VERSION = (b"", b"")
"""The first writers of the formats 0.0 and 0.1 recorded no version."""
SPARSE_0_0, SPARSE_0_1, SPARSE_1_0 = (b"0", b"0"), (b"0", b"1"), (b"1", b"0")


@dataclass(frozen=True, slots=True)  # why: see `tree.Node`
class HardLink:
    """Another name for the node at the path ``target``, and metadata for that node."""

    target: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: Mapping[bytes, bytes]


LINKS = (Symlink, HardLink)
"""The entries that have a target."""

Entry = tuple[bytes, Node | HardLink]
"""The path of an entry, and its node."""


class _BlockReader:
    """Reads an archive's blocks in order."""

    def __init__(self, file: int, tar: Span, budget: Budget, growth: Growth) -> None:
        self.position = tar.offset
        self.end = tar.offset + growth.size
        """The end of what is known to be there."""
        self.budget = budget
        self._descriptor = file
        self._path = tar.path
        self._offset = tar.offset
        self._growth = growth
        self._window_size = WINDOW_SIZE if growth.complete else SHARED_WINDOW_SIZE
        self._window = b""
        """What was read last."""
        self._start = self.position
        """Where in the file the window begins."""

    def has(self, size: int) -> bool:
        """Return whether ``size`` more bytes follow. May wait for them to be written."""
        missing = self.position + size - self.end
        if missing <= 0:
            return True
        self.end = self._offset + self._growth.reach(self.end + missing - self._offset)
        return self.position + size <= self.end

    def take(self, size: int) -> bytes:
        """Read ``size`` bytes of headers and skip their padding."""
        if not self.has(size):
            raise MalformedError("the archive ends within it")
        begin = self.position - self._start
        data = self._window[begin : begin + size]
        if len(data) < size:
            data = self._read(size)
        self.position += size + -size % BLOCK_SIZE
        return data

    def _read(self, size: int) -> bytes:
        """Move the window to the position, and return its first ``size`` bytes."""
        self._start = self.position
        self._window = os.pread(self._descriptor, max(size, self._window_size), self._start)
        if len(self._window) < size:
            raise changed(self._path)
        return self._window[:size]

    def skip(self, size: int) -> None:
        """Skip ``size`` bytes of content and their padding, which the last entry may lack."""
        if size < 0:
            raise MalformedError("its size is negative")
        if self.position + size > self.end and not self.has(size):
            raise MalformedError(f"the archive ends within its {size} bytes")
        self.position += size + -size % BLOCK_SIZE

    def header(self) -> bytes:
        """Read the next header. At the end (two blocks of zeros, or no more data) return b""."""
        if self.position >= self.end and not self.has(1):
            return b""
        begin = self.position - self._start
        block = self._window[begin : begin + BLOCK_SIZE]
        if len(block) == BLOCK_SIZE and self.position + BLOCK_SIZE <= self.end:
            self.position += BLOCK_SIZE
        else:
            block = self.take(BLOCK_SIZE)
        if block != ZEROS:
            return block
        if self.has(1) and self.take(BLOCK_SIZE) != ZEROS:
            raise MalformedError("a block of zeros stands before it")
        return b""


class _Header(msgspec.Struct):
    """The header of an entry, with the values of the extended headers before it applied."""

    block: bytes
    name: bytes
    ownership: bytes
    """The fields of mode, uid and gid."""
    size: int
    """Bytes of content in the archive, without padding."""
    mtime: bytes
    """The field of the header."""
    typeflag: bytes
    linkname: bytes
    magic: bytes
    """Magic and version."""
    records: dict[bytes, bytes]
    """The records of its pax extended header."""


def read(tar: Span, budget: Budget, growth: Growth | None = None) -> Iterator[Entry]:
    """Yield the path and node of each entry of an uncompressed archive.

    ``growth`` says how far the archive has been written, if another thread still writes it; its
    size then counts, not that of ``tar``.

    Paths are as in the archive, not normalised. The content of a `File` is a part of the archive.
    Extended attributes are kept if Linux filesystems support them and they are useful on another
    machine: ``user.`` (on files and directories only, as in Linux), ``trusted.``, ``security.``
    except SELinux labels, and POSIX ACLs. Global headers are ignored, as in containerd. Of an owner
    that needs more than 32 bits the lower ones are kept, and 2^32 - 1 is root, as in containerd,
    where chown(2) does that.

    Everything that an entry costs is charged to ``budget``, but for the directories that its path
    lacks in a tree. Raises `CorruptError` if the archive is malformed or exceeds a limit or the
    budget, `FledgeError` if it cannot be read.
    """
    try:
        with open_content(tar) as file:
            growth = growth or Growth(tar.size, complete=True)
            blocks = _BlockReader(file, tar, budget, growth)
            while True:
                start, name = blocks.position - tar.offset, b""
                try:
                    header = _next_header(blocks)
                    if header is None:
                        return
                    name = header.name
                    node = _entry(header, blocks, tar)
                    budget.charge(entry_cost(header.name, node))
                except MalformedError as error:
                    raise CorruptError(
                        f"the tar entry at byte {start}, {printable(name)!r}: {error}"
                    ) from error
                yield header.name, node
    except OSError as error:
        raise unreadable(tar.path, error) from error


def entry_cost(path: bytes, node: Node | HardLink) -> int:
    """Return the bytes of memory that an entry takes."""
    cost = len(path) + NODE_COST
    if isinstance(node, Directory):
        cost = len(path) + DIRECTORY_COST
    elif isinstance(node, LINKS):
        cost += len(node.target)
    return cost + xattrs_cost(node.xattrs) if node.xattrs else cost


def _next_header(blocks: _BlockReader) -> _Header | None:
    """Read the header of the next entry, and the extended headers before it. None at the end."""
    records: dict[bytes, bytes] = {}
    long: dict[bytes, bytes] = {}
    while block := blocks.header():
        name, ownership, size_field, mtime, checksum, typeflag, linkname, magic, prefix = (
            HEADER.unpack(block)
        )
        is_sound = adler32(block) & 0xFFFF == _adler(checksum)
        if not (is_sound or _has_signed_checksum(block, checksum)):
            raise MalformedError("its checksum is wrong; it is not a tar, or is damaged")
        size = _number(size_field)
        if typeflag in BEFORE_ENTRY:
            if not 0 <= size <= MAX_EXTENDED:
                raise MalformedError(f"an extended header cannot have {size} bytes")
            data = blocks.take(size)
            if typeflag == EXTENDED:
                records = _records(data, blocks)
            else:
                long[typeflag] = _text(data)
        elif typeflag in NO_ENTRY:
            blocks.skip(size)
        else:
            name = _text(name)
            if prefix[0] and (parent := _prefix(block, magic, prefix)):
                name = parent + b"/" + name
            if records or long:
                # An empty value leaves what the header says, as in Go.
                name = long.get(LONG_NAME) or records.get(b"path") or name
                linkname = long.get(LONG_LINK) or records.get(b"linkpath") or linkname
                size = _decimal(records[b"size"]) if records.get(b"size") else size
            name = _checked(name)
            return _Header(block, name, ownership, size, mtime, typeflag, linkname, magic, records)
    if records or long:
        raise MalformedError("the archive ends after an extended header")
    return None


def _prefix(block: bytes, magic: bytes, prefix: bytes) -> bytes:
    """Return the part of the entry's path that is before its name; b"" if there is none.

    ``prefix`` is the field of ustar, whatever the format.
    """
    if magic.startswith(POSIX_MAGIC):
        place, trailer = STAR_TRAILER
        return _text(prefix[:STAR_PREFIX_SIZE] if block[place] == trailer else prefix)
    if magic != GNU_MAGIC:
        return b""
    # Go before 1.8, and so Docker before 17.06, wrote the prefix of ustar over GNU's atime and
    # ctime. As in Go, times that are no numbers are a prefix.
    try:
        for time in GNU_TIMES:
            if prefix[time][0]:
                _number(prefix[time])
    except MalformedError:
        text = _text(prefix)
        return text if text.isascii() else b""
    return b""


def _entry(header: _Header, blocks: _BlockReader, tar: Span) -> Node | HardLink:
    typeflag, records = header.typeflag, header.records
    is_regular = typeflag in REGULAR
    is_ordinary = not records or ORDINARY.issuperset(records)
    if is_ordinary:
        xattrs = NO_XATTRS
    else:
        xattrs = _xattrs(records, is_regular or typeflag in (b"5", HARD_LINK))
    if records and (b"uid" in records or b"gid" in records):
        mode, uid, gid = _parse_ownership(header.ownership, records)
    else:
        mode, uid, gid = _ownership(header.ownership)
    mtime_ns = _mtime_ns(records.get(b"mtime"), header.mtime)
    node: Node
    if is_regular and not (typeflag == OLD_REGULAR and header.name.endswith(b"/")):
        # Without __init__: most entries are files, and passing keywords to a class is slow.
        node = File.__new__(File)
        node.mode, node.origin = mode, 0
        node.content = _content(header, is_ordinary, blocks, tar)
    elif typeflag in (b"5", OLD_REGULAR):
        node = Directory(mode=mode)
    elif typeflag == b"2":
        node = Symlink(target=_link_target(header))
    elif typeflag == HARD_LINK:
        return HardLink(_checked(_link_target(header)), mode, uid, gid, mtime_ns, xattrs)
    elif typeflag in (b"3", b"4"):
        kind = CharDevice if typeflag == b"3" else BlockDevice
        major, minor = _device(header)
        node = kind(mode=mode, major=major, minor=minor)
    elif typeflag == b"6":
        node = Fifo(mode=mode)
    else:
        raise MalformedError(f"{typeflag!r} is not a known entry type")
    node.uid, node.gid, node.mtime_ns, node.xattrs = uid, gid, mtime_ns, xattrs
    return node


def _device(header: _Header) -> tuple[int, int]:
    """Return the major and minor number of a device."""
    block, magic = header.block, header.magic
    if not magic.startswith(POSIX_MAGIC) and magic != GNU_MAGIC:
        return 0, 0  # as in Go: V7 has no fields for them
    major, minor = _number(block[MAJOR]), _number(block[MINOR])
    if not (0 <= major <= MAX_MAJOR and 0 <= minor <= MAX_MINOR):
        raise MalformedError(f"{major}:{minor} is not a device number of Linux")
    return major, minor


def _content(header: _Header, is_ordinary: bool, blocks: _BlockReader, tar: Span) -> Content:
    """Return the content of a regular file and skip it in the archive.

    ``is_ordinary``: no record tells of a sparse map.
    """
    records = header.records
    after = blocks.position + header.size
    if header.typeflag == GNU_SPARSE:
        if header.magic != GNU_MAGIC:
            raise MalformedError("its sparse map is not in GNU's format")
        size, numbers = _old_sparse_map(header.block, blocks)
        after = blocks.position + header.size
    elif not is_ordinary and (version := _sparse_version(records)):
        claimed = records.get(b"GNU.sparse.size") or records.get(b"GNU.sparse.realsize")
        size = _decimal(claimed) if claimed else header.size
        header.name = _checked(records.get(b"GNU.sparse.name") or header.name)
        if version == SPARSE_1_0:
            numbers = _sparse_map_in_data(blocks)
        else:
            texts = records.get(b"GNU.sparse.map", b"").split(b",")
            numbers = [_decimal(number) for number in texts if number]
    else:
        content = Span(tar.path, blocks.position, header.size, None, tar.digest, tar.opened)
        blocks.skip(header.size)
        return content
    start, stored = blocks.position, after - blocks.position
    if stored < 0:
        raise MalformedError("its sparse map is longer than its data")
    blocks.skip(stored)
    blocks.budget.charge(EXTENT_COST * len(numbers) // 2)
    return Sparse(size, tar.path, _extents(numbers, size, start, stored), tar.digest, tar.opened)


def _sparse_version(records: dict[bytes, bytes]) -> tuple[bytes, bytes] | None:
    """Return the version of a sparse file's map; None if it is an ordinary file, as in Go."""
    version = records.get(b"GNU.sparse.major", b""), records.get(b"GNU.sparse.minor", b"")
    if version == NO_VERSION:
        return version if records.get(b"GNU.sparse.map") else None
    return version if version in (SPARSE_0_0, SPARSE_0_1, SPARSE_1_0) else None


def _old_sparse_map(block: bytes, blocks: _BlockReader) -> tuple[int, list[int]]:
    """Return the file's size and the sparse map of GNU's old format.

    The map begins in the header and continues in the blocks after it.
    """
    size = _number(block[483:495])
    numbers: list[int] = []
    entries, more = block[386:482], block[482]
    while True:
        for offset, length in SPARSE_ENTRY.iter_unpack(entries):
            if offset[0]:
                numbers += _number(offset), _number(length)
        if not more:
            return size, numbers
        _check_extents(len(numbers) // 2)
        block = blocks.take(BLOCK_SIZE)
        entries, more = block[:504], block[504]


def _sparse_map_in_data(blocks: _BlockReader) -> list[int]:
    """Return the sparse map of GNU's pax format 1.0.

    It is lines of decimal numbers before the data; the first is the number of pairs.
    """
    lines: list[bytes] = []
    rest = b""
    count = 0
    while not lines or len(lines) <= 2 * count:
        *complete, rest = (rest + blocks.take(BLOCK_SIZE)).split(b"\n")
        if len(rest) > BLOCK_SIZE:
            raise MalformedError("it has no sparse map")
        if not lines and complete:
            count = _decimal(complete[0])
            _check_extents(count)
        lines += complete
    return [_decimal(line) for line in lines[1 : 1 + 2 * count]]


def _check_extents(count: int) -> None:
    if not 0 <= count <= MAX_EXTENTS:
        raise MalformedError(
            f"fledge takes sparse files of at most {MAX_EXTENTS} runs of data, and it has more"
        )


def _extents(numbers: list[int], size: int, start: int, stored: int) -> tuple[DataExtent, ...]:
    """The extents of a `Sparse` with ``stored`` bytes of data from ``start``, if all fits.

    ``numbers`` are alternating offsets and lengths, ``size`` is the file's size; ``stored`` bytes
    of data begin at ``start`` in the archive.
    """
    if not 0 <= size <= MAX_FILE_SIZE:
        raise MalformedError(f"{size} bytes are too many for a file")
    if len(numbers) % 2:
        raise MalformedError("its sparse map is malformed")
    _check_extents(len(numbers) // 2)
    extents: list[DataExtent] = []
    end, data_end = 0, start + stored
    for offset, length in zip(numbers[::2], numbers[1::2], strict=True):
        if not end <= offset <= offset + length <= size:
            raise MalformedError("its sparse map is out of order or beyond its size")
        end = offset + length
        if length:
            extents.append(DataExtent(offset, start, length))
        start += length
    if start != data_end:
        raise MalformedError("its sparse map does not fit its data")
    return tuple(extents)


@lru_cache(maxsize=MANY_VALUES)
def _adler(checksum: bytes) -> int:
    """Return the lower half of the Adler-32 of all headers that have this checksum.

    The checksum is the sum of all bytes, with the checksum field itself taken as blanks. The lower
    half of an Adler-32 is the sum plus one modulo 65521 (RFC 1950), and adler32() is much faster
    than sum().
    """
    return (_number(checksum) - len(checksum) * ord(" ") + sum(checksum) + 1) % ADLER_MODULUS


def _has_signed_checksum(block: bytes, checksum: bytes) -> bool:
    """Return whether the checksum is the sum of signed bytes, as of some old programs."""
    negative = sum(byte > 127 for byte in block) - sum(byte > 127 for byte in checksum)
    excess = (adler32(block) & 0xFFFF) - _adler(checksum)
    return (excess - 256 * negative) % ADLER_MODULUS == 0


@lru_cache(maxsize=MANY_VALUES)
def _number(field: bytes) -> int:
    """Parse octal digits or GNU's base-256: the first bit set, the rest in two's complement."""
    digits = field.strip(b" \0")
    if not digits.isdigit():
        if field[0] & 0x80:
            bits = 8 * len(field) - 1
            value = int.from_bytes(field, "big") & (1 << bits) - 1
            value -= (1 << bits) if value >> bits - 1 else 0
            if not -(1 << 63) <= value < 1 << 63:
                raise MalformedError("a number has more than 64 bits")
            return value
        digits = _text(digits)
        if not digits:
            return 0
    try:
        return int(digits, 8) if digits.isdigit() else int("not a number")
    except ValueError as error:
        raise MalformedError(f"{digits!r} is not an octal number") from error


def _decimal(text: bytes) -> int:
    """Parse a decimal number, as Go does: with a sign and leading zeros, if it has them."""
    match = DECIMAL.fullmatch(text)
    if not match:
        raise MalformedError(f"{text[:32]!r} is not a decimal number, or is too large")
    sign, digits = match.groups()
    return -int(digits) if sign == b"-" else int(digits)


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _checked(path: bytes) -> bytes:
    """Return the path, or raise `MalformedError` if Linux cannot have such a path."""
    if 0 in path:
        raise MalformedError("its name contains a NUL")
    if len(path) > MAX_NAME:
        if len(path) >= MAX_PATH:
            raise MalformedError(f"its name is longer than {MAX_PATH - 1} bytes")
        if any(len(part) > MAX_NAME for part in path.split(b"/")):
            raise MalformedError(f"a component of its name is longer than {MAX_NAME} bytes")
    return path


def _link_target(header: _Header) -> bytes:
    target = header.linkname
    if not header.records.get(b"linkpath"):
        target = _text(target)
    if not target or 0 in target or len(target) >= MAX_PATH:
        raise MalformedError(f"its link target is empty, contains a NUL or has {MAX_PATH} bytes")
    return target


@lru_cache(maxsize=1024)
def _ownership(field: bytes) -> tuple[int, int, int]:
    """Return permissions, uid and gid of an entry without records for them.

    They are cached because most entries share them with an earlier one. Records, which may be
    long, are not.
    """
    return _parse_ownership(field, {})


def _parse_ownership(field: bytes, records: dict[bytes, bytes]) -> tuple[int, int, int]:
    """Return permissions, uid and gid. A record counts more than the header's field."""
    mode, uid, gid = field[:8], field[8:16], field[16:]
    permissions = _number(mode) & 0o7777
    return permissions, _id(records.get(b"uid"), uid), _id(records.get(b"gid"), gid)


def _id(record: bytes | None, field: bytes) -> int:
    value = (_decimal(record) if record else _number(field)) & (1 << 32) - 1
    # To chown(2), the highest value means "leave it", and a new file is root's.
    return value if value <= MAX_ID else 0


@lru_cache(maxsize=1024)
def _mtime_ns(record: bytes | None, field: bytes) -> int:
    """Parse a time into nanoseconds since 1970.

    A time that does not fit into 64 bits becomes 0, as in containerd.
    """
    if record:
        match = PAX_TIME.fullmatch(record)
        if not match:
            raise MalformedError(f"{record[:32]!r} is not a time")
        sign, seconds, fraction = match.groups()
        nanoseconds = int(seconds) * NANOSECONDS + int((fraction or b"")[:9].ljust(9, b"0"))
        if sign == b"-":
            nanoseconds = -nanoseconds
    else:
        nanoseconds = _number(field) * NANOSECONDS
    return nanoseconds if abs(nanoseconds) < 1 << 63 else 0


def _records(data: bytes, blocks: _BlockReader) -> dict[bytes, bytes]:
    """Parse the records of an extended header, which are lines of ``LENGTH KEYWORD=VALUE``.

    If a keyword occurs several times, the last value counts. The exception is GNU's sparse format
    0.0, whose repeated records are joined to the map of format 0.1.
    """
    records: dict[bytes, bytes] = {}
    sparse_map: list[bytes] = []
    position = count = 0
    while position < len(data):
        space = data.find(b" ", position, position + MAX_DIGITS + 1)
        length = data[position : max(space, position)]
        end = position + int(length) if length.isdigit() else 0
        keyword, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not position < space < end <= len(data) or not equals or data[end - 1] != NEWLINE:
            raise MalformedError("its extended header is malformed")
        if keyword in (SPARSE_OFFSET, SPARSE_LENGTH):
            if b"," in value or (keyword == SPARSE_LENGTH) != len(sparse_map) % 2:
                raise MalformedError("its sparse map is malformed")
            sparse_map.append(value)
        else:
            records[keyword] = value
            count += 1
            if count > MAX_RECORDS:
                raise MalformedError(f"its extended header has more than {MAX_RECORDS} records")
        position = end
    blocks.budget.charge(RECORD_COST * (count + len(sparse_map)))
    if sparse_map:
        records[b"GNU.sparse.map"] = b",".join(sparse_map)
    return records


def _xattrs(records: dict[bytes, bytes], with_user: bool) -> dict[bytes, bytes]:
    """Return the extended attributes that are kept (see `read`), by full name."""
    xattrs: dict[bytes, bytes] = {}
    for keyword, value in records.items():
        name = keyword[len(XATTR) :]
        if not keyword.startswith(XATTR) or not _is_kept(name, with_user):
            continue
        if b"\0" in name or len(name) > MAX_NAME or len(value) > MAX_XATTR_SIZE:
            raise MalformedError(f"its extended attribute {printable(name[:MAX_NAME])} is too long")
        xattrs[name] = value
    return xattrs


def _is_kept(name: bytes, with_user: bool) -> bool:
    namespace, _, rest = name.partition(b".")
    if namespace == b"user":
        return with_user and rest != b""
    if namespace in (b"security", b"trusted"):
        return rest not in (b"", b"selinux")
    return name in POSIX_ACLS
