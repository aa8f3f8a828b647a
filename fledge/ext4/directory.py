"""The blocks of a directory: a list of entries in one block, or a hash tree over many.

Documentation/filesystems/ext4/directory.rst in the kernel's sources. Every block is a list of
entries that fill it, so that a kernel which knows no hash trees can read them all::

    linear     entry "." │ entry ".." │ entries ... │ tail
    root       entry "." │ entry ".." ╎ info │ limit, count, block │ hash, block │ ...  │ tail
    node       unused entry           ╎        limit, count, block │ hash, block │ ...  │ tail
    leaf       entries ...                                                              │ tail

What follows ╎ is hidden in the last entry before it, which seems to reach to the end of the block.
The root and the nodes are the index: each pair leads to the block whose names have that hash or a
larger one. The first block of an index has no hash, for it takes all that are smaller.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Annotated, NamedTuple

import msgspec

from fledge.errors import MalformedError
from fledge.ext4.half_md4 import half_md4
from fledge.ext4.structures import BLOCK_SIZE, HALF_MD4, checksum
from fledge.tree.binary import Layout, u8, u16, u32

FILE_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}
"""What an entry says of the type of its inode, by the S_IFMT bits."""
DIRECTORY = FILE_TYPES[stat.S_IFDIR]


class Entry(NamedTuple):
    """struct ext4_dir_entry_2, before the name."""

    inode: Annotated[int, u32(0x0)]
    """The number of the inode, or 0 if the entry is not in use."""
    rec_len: Annotated[int, u16(0x4)]
    """Bytes from this entry to the next."""
    name_len: Annotated[int, u8(0x6)]
    file_type: Annotated[int, u8(0x7)]


class Tail(NamedTuple):
    """struct ext4_dir_entry_tail: the end of a block, which seems to be an unused entry."""

    rec_len: Annotated[int, u16(0x4)]
    file_type: Annotated[int, u8(0x7)]
    checksum: Annotated[int, u32(0x8)]


class IndexInfo(NamedTuple):
    """struct dx_root_info."""

    hash_version: Annotated[int, u8(0x4)]
    info_length: Annotated[int, u8(0x5)]
    """Bytes of this structure."""
    indirect_levels: Annotated[int, u8(0x6)]
    """Levels of nodes between the root and the leaves."""


class IndexCount(NamedTuple):
    """struct dx_countlimit, and the block behind it."""

    limit: Annotated[int, u16(0x0)]
    """How many blocks the index has room for."""
    entries: Annotated[int, u16(0x2)]
    """How many it leads to (count)."""
    block: Annotated[int, u32(0x4)]
    """The first of them, counted from the beginning of the directory."""


class IndexEntry(NamedTuple):
    """struct dx_entry."""

    hash: Annotated[int, u32(0x0)]
    """The lowest hash in the block."""
    block: Annotated[int, u32(0x4)]


class IndexTail(NamedTuple):
    """struct dx_tail."""

    reserved: Annotated[int, u32(0x0)]
    checksum: Annotated[int, u32(0x4)]


ENTRY = Layout(Entry, size=8)
TAIL = Layout(Tail, size=12)
TAIL_TYPE = 0xDE
"""The file type in the tail of a block, which no entry has."""
ENTRY_SPACE = BLOCK_SIZE - TAIL.size
"""Bytes of a block for entries."""

MIN_RECORD = 12
"""Bytes of the shortest entry, such as the one for ``.``."""
DOTS_SIZE = 24
"""Bytes of the entries for ``.`` and ``..``."""

LEAF_FILL = ENTRY_SPACE * 4 // 5
"""Bytes of a leaf that are used, so that new entries do not split each leaf at once. e2fsck
leaves as much room (indexed_dir_slack_percentage in e2fsck.conf(5))."""

INDEX_INFO = Layout(IndexInfo, size=8)
INDEX_COUNT = Layout(IndexCount, size=8)
INDEX_ENTRY = Layout(IndexEntry, size=8)
INDEX_TAIL = Layout(IndexTail, size=8)
NODE_ENTRIES = (BLOCK_SIZE - ENTRY.size - INDEX_TAIL.size) // INDEX_ENTRY.size
ROOT_ENTRIES = NODE_ENTRIES - (DOTS_SIZE + INDEX_INFO.size - ENTRY.size) // INDEX_ENTRY.size
MAX_LEAVES = ROOT_ENTRIES * NODE_ENTRIES
"""Without the feature largedir a hash tree has at most one level of nodes."""


class Leaf(msgspec.Struct, frozen=True):
    """One leaf of a hash tree."""

    hash: int
    """The lowest hash in it, which is even. Odd: the leaf before has names of this hash as well."""
    names: Sequence[bytes]
    """In the order of their hashes."""


def record_size(name: bytes) -> int:
    """Bytes of an entry with that name."""
    return ENTRY.size + len(name) + -len(name) % 4


def record(name: bytes, inode: int, file_type: int) -> bytes:
    """An entry with its name, as long as that needs."""
    size = ENTRY.size + len(name) + -len(name) % 4
    return (ENTRY.pack_fields(inode, size, len(name), file_type) + name).ljust(size, b"\0")


def is_linear(names: Collection[bytes]) -> bool:
    """Whether entries with these names fit into one block, with ``.`` and ``..``."""
    if len(names) > ENTRY_SPACE // MIN_RECORD:
        return False
    return DOTS_SIZE + sum(map(record_size, names)) <= ENTRY_SPACE


def leaves(names: Iterable[bytes], hash_seed: bytes) -> list[Leaf]:
    """The leaves of a hash tree over these names, in the order of their hashes."""
    hashes = half_md4(names, hash_seed).items()
    hashed = sorted([(major, minor, name) for name, (major, minor) in hashes])
    result: list[Leaf] = []
    start = used = 0
    for end, (_, _, name) in enumerate(hashed):
        size = ENTRY.size + len(name) + -len(name) % 4
        if used + size > LEAF_FILL:
            result.append(_leaf(hashed, start, end))
            start, used = end, 0
        used += size
    result.append(_leaf(hashed, start, len(hashed)))
    return result


def _leaf(hashed: list[tuple[int, int, bytes]], start: int, end: int) -> Leaf:
    first = hashed[start][0]
    continues = start > 0 and hashed[start - 1][0] == first
    return Leaf(first | continues, [name for _, _, name in hashed[start:end]])


def tree_size(leaves: int) -> int:
    """Blocks of a hash tree with so many leaves."""
    return 1 + _index_nodes(leaves) + leaves


def linear_block(number: int, parent: int, records: Iterable[bytes], seed: int) -> bytes:
    """The one block of a small directory, with these entries.

    ``number`` and ``parent`` are the inodes of ``.`` and ``..``; ``seed`` is the `inode_seed`.
    """
    dots = record(b".", number, DIRECTORY), record(b"..", parent, DIRECTORY)
    return _entries_block([*dots, *records], seed)


def tree_blocks(
    number: int, parent: int, leaves: Sequence[Leaf], records: dict[bytes, bytes], seed: int
) -> Iterator[bytes]:
    """The blocks of a hash tree: its root, its nodes if there are any, and its leaves.

    ``records`` has the entries of all names in the leaves. The others are as in `linear_block`.
    """
    nodes = _index_nodes(len(leaves))
    index = [IndexEntry(leaf.hash, 1 + nodes + position) for position, leaf in enumerate(leaves)]
    below = [index[start : start + NODE_ENTRIES] for start in range(0, len(index), NODE_ENTRIES)]
    if nodes:
        index = [IndexEntry(some[0].hash, 1 + position) for position, some in enumerate(below)]
    dot = record(b".", number, DIRECTORY)
    dots = _stretched(record(b"..", parent, DIRECTORY), BLOCK_SIZE - len(dot))
    info = IndexInfo(
        hash_version=HALF_MD4, info_length=INDEX_INFO.size, indirect_levels=1 if nodes else 0
    )
    head = dot + dots + INDEX_INFO.pack(info)
    yield _index_block(head, index, ROOT_ENTRIES, seed)
    if nodes:
        head = ENTRY.pack(Entry(inode=0, rec_len=BLOCK_SIZE, name_len=0, file_type=0))
        for some in below:
            yield _index_block(head, some, NODE_ENTRIES, seed)
    for leaf in leaves:
        yield _entries_block([records[name] for name in leaf.names], seed)


def empty_block(seed: int) -> bytes:
    """A block of a directory without an entry in use; ``seed`` is the `inode_seed`."""
    return _entries_block([record(b"", 0, 0)], seed)


def unpack_entries(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Inode numbers and names in a block of any size, or in inline data.

    The index and the tail seem to be unused entries, and are skipped as those are. Raises
    `MalformedError`.
    """
    position = 0
    size, head = len(data), ENTRY.size
    while position < size:
        left = size - position
        if left < MIN_RECORD:
            raise MalformedError("one of its entries has no room")
        inode, stored, name_length, _ = ENTRY.unpack_from(data, position)
        length = _record_length(stored, size) if size >= 1 << 16 else stored
        if length % 4 or not max(MIN_RECORD, head + name_length) <= length <= left:
            raise MalformedError("one of its entries has an impossible length")
        if inode:
            yield inode, data[position + head : position + head + name_length]
        position += length


def is_intact(block: bytes, seed: int, *, indexed: bool) -> bool:
    """Whether the checksum of a block of any size is right.

    ``seed`` is the `inode_seed`. ``indexed``: the directory is a hash tree, so that the block may
    belong to its index.
    """
    start = _index_start(block) if indexed else None
    if start is None:
        return block[-TAIL.size :] == _tail(checksum(seed, block[: -TAIL.size]))
    index = INDEX_COUNT.unpack_from(block, start)
    tail = block[start + index.limit * INDEX_ENTRY.size :][: INDEX_TAIL.size]
    if len(tail) < INDEX_TAIL.size:
        return False
    found = INDEX_TAIL.unpack_from(tail)
    used = block[: start + index.entries * INDEX_ENTRY.size]
    return found.checksum == _index_checksum(used, found.reserved, seed)


def _index_start(block: bytes) -> int | None:
    """The offset of the `IndexCount` in a block of an index; None in a leaf."""
    first = ENTRY.unpack_from(block)
    length = _record_length(first.rec_len, len(block))
    if first.inode == 0 and length == len(block):
        return ENTRY.size
    if first.rec_len + ENTRY.unpack_from(block, MIN_RECORD).rec_len == len(block):
        return DOTS_SIZE + INDEX_INFO.size
    return None


def _record_length(stored: int, size: int) -> int:
    """The real ``rec_len`` in a block of ``size`` bytes.

    16 bits have no room for 65536. Blocks of that size use the two bits that otherwise are 0.
    """
    if size < 1 << 16:
        return stored
    return size if stored in (0, 0xFFFF) else stored & ~3 | (stored & 3) << 16


def _index_nodes(leaves: int) -> int:
    """Nodes of a hash tree with so many leaves, beside its root."""
    return -(-leaves // NODE_ENTRIES) if leaves > ROOT_ENTRIES else 0


def _entries_block(records: Sequence[bytes], seed: int) -> bytes:
    """A block of entries, of which the last one reaches to the tail."""
    *others, last = records
    used = b"".join(others)
    used = (used + _stretched(last, ENTRY_SPACE - len(used))).ljust(ENTRY_SPACE, b"\0")
    return used + _tail(checksum(seed, used))


def _stretched(record: bytes, size: int) -> bytes:
    """An entry that says it has ``size`` bytes. Those that it has not are not added."""
    return ENTRY.pack(ENTRY.unpack_from(record)._replace(rec_len=size)) + record[ENTRY.size :]


def _tail(total: int) -> bytes:
    return TAIL.pack(Tail(rec_len=TAIL.size, file_type=TAIL_TYPE, checksum=total))


def _index_block(head: bytes, index: Sequence[IndexEntry], limit: int, seed: int) -> bytes:
    """A block of an index that begins with ``head`` and has room for ``limit`` entries."""
    count = IndexCount(limit=limit, entries=len(index), block=index[0].block)
    used = head + INDEX_COUNT.pack(count) + b"".join(map(INDEX_ENTRY.pack, index[1:]))
    tail = IndexTail(reserved=0, checksum=_index_checksum(used, 0, seed))
    return used.ljust(len(head) + limit * INDEX_ENTRY.size, b"\0") + INDEX_TAIL.pack(tail)


def _index_checksum(used: bytes, reserved: int, seed: int) -> int:
    """The checksum of a block of an index, which goes over its tail too, but not its free room."""
    return checksum(seed, used + INDEX_TAIL.pack(IndexTail(reserved, checksum=0)))
