"""The blocks of directories.

Entries are at the beginning of a block, sorted by name as bytes, and the names behind them::

    │ entry │ entry │ … │ name │ name │ … │

The offset of the first name says how many entries there are. A name ends where the next one begins,
and the last one at a NUL or at the end of the block. ``.`` and ``..`` are entries like all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG
from typing import Annotated, NamedTuple

from fledge.disks.erofs.structures import BLOCK_SIZE
from fledge.errors import MalformedError
from fledge.tree.binary import Layout, u8, u16, u64
from fledge.tree.limits import MAX_NAME

FILE_TYPES = {S_IFREG: 1, S_IFDIR: 2, S_IFCHR: 3, S_IFBLK: 4, S_IFIFO: 5, S_IFLNK: 7}
"""The number of each type (FT_REG_FILE and others in linux/fs_types.h)."""


class Entry(NamedTuple):
    """struct erofs_dirent."""

    nid: Annotated[int, u64(0x0)]
    name_offset: Annotated[int, u16(0x8)]
    """Bytes from the beginning of the block."""
    file_type: Annotated[int, u8(0xA)]


ENTRY = Layout(Entry, size=12)


def split(names: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Divide sorted names into blocks."""
    block: list[bytes] = []
    left = BLOCK_SIZE
    for name in names:
        size = ENTRY.size + len(name)
        if size > left:
            yield block
            block, left = [], BLOCK_SIZE
        block.append(name)
        left -= size
    yield block


def size(names: Iterable[bytes]) -> int:
    """Return the bytes of a directory with these sorted names; only its last block is shorter."""
    *full, last = split(names)
    return len(full) * BLOCK_SIZE + sum(ENTRY.size + len(name) for name in last)


def pack(entries: Iterable[tuple[bytes, int, int]]) -> bytes:
    """Return the content of a directory. An entry is a name, a nid and a `FILE_TYPES` number."""
    by_name = {name: (nid, file_type) for name, nid, file_type in sorted(entries)}
    blocks: list[bytes] = []
    for names in split(by_name):
        offset = len(names) * ENTRY.size
        packed = []
        for name in names:
            nid, file_type = by_name[name]
            packed.append(ENTRY.pack(Entry(nid, offset, file_type)))
            offset += len(name)
        blocks.append(b"".join((*packed, *names)))
    *full, last = blocks
    return b"".join((*(block.ljust(BLOCK_SIZE, b"\0") for block in full), last))


def unpack(block: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the name and nid of each entry in a block. Raises `MalformedError`."""
    first = ENTRY.unpack_from(block).name_offset if len(block) >= ENTRY.size else 0
    if first < ENTRY.size or first % ENTRY.size or first > len(block):
        raise MalformedError("a block of it is malformed")
    entries = list(ENTRY.iter_unpack(block[:first]))
    ends = [entry.name_offset for entry in entries[1:]]
    for entry, end in zip(entries, [*ends, len(block)], strict=True):
        if not first <= entry.name_offset < end <= len(block):
            raise MalformedError("a name in it is malformed")
        name = block[entry.name_offset : end]
        if end == len(block):
            name = name.partition(b"\0")[0]
        if not 0 < len(name) <= MAX_NAME or b"\0" in name or b"/" in name:
            raise MalformedError("a name in it is malformed")
        yield name, entry.nid
