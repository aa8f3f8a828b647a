"""The blocks of a directory: a list of entries in one, a hash tree over more.

Documentation/filesystems/ext4/directory.rst; the hash is ext4's own variant of half of MD4.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Sequence
from struct import Struct, unpack
from typing import NamedTuple

import msgspec

from fledge.ext4.structures import BLOCK_SIZE, HALF_MD4, Damage, checksum

FILE_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}
DIRECTORY = FILE_TYPES[stat.S_IFDIR]

ENTRY = Struct("<IHBB")
"""Inode, length of the record, length of the name, file type; the name follows."""
TAIL = Struct("<IHBBI")
"""The end of a block, disguised as an unused entry: its last field is a checksum."""
TAIL_TYPE = 0xDE
ENTRY_SPACE = BLOCK_SIZE - TAIL.size

MIN_RECORD = 12
DOTS_SIZE = 24
"""Bytes of the entries for ``.`` and ``..``."""

LEAF_FILL = ENTRY_SPACE * 4 // 5
"""Bytes of a leaf that are used, so that new entries do not split every one at once; e2fsck
leaves as much (indexed_dir_slack_percentage in e2fsck.conf(5))."""

INDEX_ROOT = Struct("<IBBBB")
"""Reserved, hash version, length of this, levels below the root, flags."""
INDEX_COUNT = Struct("<HHI")
"""How many entries there is room for, how many there are, and the block of the first."""
INDEX_ENTRY = Struct("<II")
"""The lowest hash in a block, and that block of the directory."""
INDEX_TAIL = Struct("<II")
"""Reserved, and a checksum."""
_CHECKSUM_SIZE = 4
NODE_ENTRIES = (BLOCK_SIZE - ENTRY.size - INDEX_TAIL.size) // INDEX_ENTRY.size
ROOT_ENTRIES = NODE_ENTRIES - (DOTS_SIZE + INDEX_ROOT.size - ENTRY.size) // INDEX_ENTRY.size
MAX_LEAVES = ROOT_ENTRIES * NODE_ENTRIES
"""Without the largedir feature there are two levels of index blocks."""


class Entry(NamedTuple):
    """A name in a directory."""

    name: bytes
    number: int
    file_type: int


class Leaf(msgspec.Struct, frozen=True):
    """One block of a hash tree."""

    hash: int
    """The lowest in it; odd if names with the same hash are in the leaf before too."""
    names: Sequence[bytes]


def record_size(name: bytes) -> int:
    """Bytes of an entry with that name."""
    return ENTRY.size + len(name) + -len(name) % 4


def is_linear(names: Iterable[bytes]) -> bool:
    """Whether these names, and the two dots, fit into one block."""
    return DOTS_SIZE + sum(map(record_size, names)) <= ENTRY_SPACE


def leaves(names: Iterable[bytes], hash_seed: bytes) -> list[Leaf]:
    """The leaves of the hash tree over these names, ascending."""
    seed = _SEED.unpack(hash_seed)
    hashed = sorted((*hashes, name) for name, hashes in half_md4(names, seed).items())
    result: list[Leaf] = []
    start = used = 0
    for end, (_, _, name) in enumerate(hashed):
        size = record_size(name)
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


def linear_block(number: int, parent: int, entries: Sequence[Entry], seed: int) -> bytes:
    """The one block of a small directory; ``seed`` is the `inode_seed`."""
    dots = [Entry(b".", number, DIRECTORY), Entry(b"..", parent, DIRECTORY)]
    return _entries_block([*dots, *entries], seed)


def tree_blocks(
    number: int, parent: int, leaves: Sequence[Leaf], entries: dict[bytes, Entry], seed: int
) -> Iterator[bytes]:
    """The blocks of a hash tree: its root, the level below if there is one, and the leaves."""
    nodes = _index_nodes(len(leaves))
    index = [(leaf.hash, 1 + nodes + position) for position, leaf in enumerate(leaves)]
    below = [index[start : start + NODE_ENTRIES] for start in range(0, len(index), NODE_ENTRIES)]
    if nodes:
        index = [(some[0][0], 1 + position) for position, some in enumerate(below)]
    dots = ENTRY.pack(number, 12, 1, DIRECTORY) + b".\0\0\0"
    dots += ENTRY.pack(parent, BLOCK_SIZE - 12, 2, DIRECTORY) + b"..\0\0"
    info = INDEX_ROOT.pack(0, HALF_MD4, INDEX_ROOT.size, 1 if nodes else 0, 0)
    yield _index_block(dots + info, index, ROOT_ENTRIES, seed)
    if nodes:
        for some in below:
            yield _index_block(ENTRY.pack(0, BLOCK_SIZE, 0, 0), some, NODE_ENTRIES, seed)
    for leaf in leaves:
        yield _entries_block([entries[name] for name in leaf.names], seed)


def empty_block(seed: int) -> bytes:
    """A block of a directory without an entry."""
    return _entries_block([Entry(b"", 0, 0)], seed)


def unpack_entries(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Inode numbers and names in a block of any size, or in inline data.

    An index block and a checksum look like unused entries, and are passed over as those are.
    Raises `Damage`.
    """
    position = 0
    while position < len(data):
        if len(data) - position < MIN_RECORD:
            raise Damage("one of its entries has no room")
        number, stored, name_length, _ = ENTRY.unpack_from(data, position)
        length = _record_length(stored, len(data))
        name = data[position + ENTRY.size : position + ENTRY.size + name_length]
        smallest = max(MIN_RECORD, record_size(name))
        if length % 4 or not smallest <= length <= len(data) - position:
            raise Damage("one of its entries has an impossible length")
        if number:
            yield number, name
        position += length


def is_intact(block: bytes, seed: int, *, indexed: bool) -> bool:
    """Whether the checksum of a block of any size is right.

    ``seed`` is the `inode_seed`; ``indexed``: it may be one of the index of a hash tree.
    """
    start = _index_start(block) if indexed else None
    if start is None:
        total = checksum(seed, block[: -TAIL.size])
        return block[-TAIL.size :] == TAIL.pack(0, TAIL.size, 0, TAIL_TYPE, total)
    limit, count, _ = INDEX_COUNT.unpack_from(block, start)
    used = block[: start + count * INDEX_ENTRY.size]
    tail = block[start + limit * INDEX_ENTRY.size :][: INDEX_TAIL.size]
    reserved = tail[:-_CHECKSUM_SIZE]
    total = checksum(seed, used + reserved + bytes(_CHECKSUM_SIZE))
    return tail == reserved + total.to_bytes(_CHECKSUM_SIZE, "little")


def _index_start(block: bytes) -> int | None:
    """Where the entries of an index block begin; None if it is a leaf."""
    number, stored, _, _ = ENTRY.unpack_from(block)
    if number == 0 and _record_length(stored, len(block)) == len(block):
        return ENTRY.size
    _, dots, _, _ = ENTRY.unpack_from(block, MIN_RECORD)
    if stored + dots == len(block):
        return DOTS_SIZE + INDEX_ROOT.size
    return None


def _record_length(stored: int, size: int) -> int:
    """16 bits have no room for 65536, and use the two that are always 0 for more."""
    if size < 1 << 16:
        return stored
    return size if stored in (0, 0xFFFF) else stored & ~3 | (stored & 3) << 16


def _index_nodes(leaves: int) -> int:
    return -(-leaves // NODE_ENTRIES) if leaves > ROOT_ENTRIES else 0


def _entries_block(entries: Sequence[Entry], seed: int) -> bytes:
    records = bytearray()
    start = 0
    for name, number, file_type in entries:
        start = len(records)
        size = record_size(name)
        record = ENTRY.pack(number, size, len(name), file_type) + name
        records += record.ljust(size, b"\0")
    name, number, file_type = entries[-1]
    ENTRY.pack_into(records, start, number, ENTRY_SPACE - start, len(name), file_type)
    records += bytes(ENTRY_SPACE - len(records))
    return bytes(records) + TAIL.pack(0, TAIL.size, 0, TAIL_TYPE, checksum(seed, records))


def _index_block(head: bytes, index: Sequence[tuple[int, int]], limit: int, seed: int) -> bytes:
    """What is before the entries, them (the first without its hash), and a checksum."""
    count = INDEX_COUNT.pack(limit, len(index), index[0][1])
    used = head + count + b"".join(INDEX_ENTRY.pack(*entry) for entry in index[1:])
    total = checksum(seed, used + bytes(INDEX_TAIL.size))
    space = len(head) + limit * INDEX_ENTRY.size
    return used.ljust(space, b"\0") + INDEX_TAIL.pack(0, total)


_SEED = Struct("<4I")
_CHUNK = 32
_WORDS = _CHUNK // 4
_END_OF_DIRECTORY = 0xFFFFFFFE
"""A hash that stands for the end, and so for no name."""
_MASK = 0xFFFFFFFF
_LANE = Struct("<Q")
"""What one number has in an integer that holds many: 32 bits, and 32 for what is carried."""
_LANES = 1024

_Numbers = tuple[int, int, int, int]


def half_md4(names: Iterable[bytes], seed: _Numbers) -> dict[bytes, tuple[int, int]]:
    """The hash of each name, even, and the second one that orders names of equal hash.

    Names of as many chunks are hashed together, their numbers side by side in one integer: large
    directories spend their time here, and a name takes an eighth of it so.
    """
    by_chunks: dict[int, list[bytes]] = {}
    for name in names:
        by_chunks.setdefault(-(-len(name) // _CHUNK), []).append(name)
    hashes: dict[bytes, tuple[int, int]] = {}
    for chunks, some in by_chunks.items():
        for start in range(0, len(some), _LANES):
            group = some[start : start + _LANES]
            hashes.update(zip(group, _hash(group, chunks, seed), strict=True))
    return hashes


def _hash(names: Sequence[bytes], chunks: int, seed: _Numbers) -> Iterator[tuple[int, int]]:
    lanes = Struct(f"<{len(names)}Q")
    ones = int.from_bytes(_LANE.pack(1) * len(names), "little")
    a, b, c, d = seed
    state = a * ones, b * ones, c * ones, d * ones
    for start in range(0, chunks * _CHUNK, _CHUNK):
        text = b"".join([_chunk(name[start:]) for name in names])
        words = unpack(f">{len(names) * _WORDS}I", text)
        columns = [lanes.pack(*words[column::_WORDS]) for column in range(_WORDS)]
        state = _transform(state, [int.from_bytes(column, "little") for column in columns], ones)
    size = len(names) * _LANE.size
    majors, minors = (lanes.unpack(state[i].to_bytes(size, "little")) for i in (1, 2))
    for major, minor in zip(majors, minors, strict=True):
        even = major & ~1
        yield (even if even != _END_OF_DIRECTORY else even - 2), minor


def _chunk(text: bytes) -> bytes:
    """The first 32 bytes as eight big-endian words, filled up with the length of all."""
    length = len(text)
    if length >= _CHUNK:
        return text[:_CHUNK]
    pad = _LENGTHS[length]
    whole = length & ~3
    # In the word that is not whole, it stands before the text.
    return (text[:whole] + pad * (4 - length % 4) + text[whole:]).ljust(_CHUNK, pad)


_LENGTHS = [bytes([length]) for length in range(_CHUNK)]


def _transform(state: _Numbers, words: Sequence[int], ones: int) -> _Numbers:
    """Half the steps of MD4's compression (RFC 1320, section 3.4), in an order of its own.

    In each lane; ``ones`` has a one in each. What a step shifts or carries out of its 32 bits
    ends in the unused ones of a lane, which the mask clears.
    """
    m, second, third = _MASK * ones, 0x5A827999 * ones, 0x6ED9EBA1 * ones
    a, b, c, d = state
    for i, j, k, n in ((0, 1, 2, 3), (4, 5, 6, 7)):
        a = (a + (d ^ (b & (c ^ d))) + words[i]) & m
        a = (a << 3 | a >> 29) & m
        d = (d + (c ^ (a & (b ^ c))) + words[j]) & m
        d = (d << 7 | d >> 25) & m
        c = (c + (b ^ (d & (a ^ b))) + words[k]) & m
        c = (c << 11 | c >> 21) & m
        b = (b + (a ^ (c & (d ^ a))) + words[n]) & m
        b = (b << 19 | b >> 13) & m
    for i, j, k, n in ((1, 3, 5, 7), (0, 2, 4, 6)):
        a = (a + (b & c) + ((b ^ c) & d) + words[i] + second) & m
        a = (a << 3 | a >> 29) & m
        d = (d + (a & b) + ((a ^ b) & c) + words[j] + second) & m
        d = (d << 5 | d >> 27) & m
        c = (c + (d & a) + ((d ^ a) & b) + words[k] + second) & m
        c = (c << 9 | c >> 23) & m
        b = (b + (c & d) + ((c ^ d) & a) + words[n] + second) & m
        b = (b << 13 | b >> 19) & m
    for i, j, k, n in ((3, 7, 2, 6), (1, 5, 0, 4)):
        a = (a + (b ^ c ^ d) + words[i] + third) & m
        a = (a << 3 | a >> 29) & m
        d = (d + (a ^ b ^ c) + words[j] + third) & m
        d = (d << 9 | d >> 23) & m
        c = (c + (d ^ a ^ b) + words[k] + third) & m
        c = (c << 11 | c >> 21) & m
        b = (b + (c ^ d ^ a) + words[n] + third) & m
        b = (b << 15 | b >> 17) & m
    return (state[0] + a) & m, (state[1] + b) & m, (state[2] + c) & m, (state[3] + d) & m
