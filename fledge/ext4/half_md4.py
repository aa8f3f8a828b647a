"""The hash of names by which ext4 orders large directories: its own variant of half of MD4.

MD4 (RFC 1320) computes with four numbers of 32 bits. This one does half of the 48 steps for each
chunk of 32 bytes, and takes the words of a chunk in an order of its own (half_md4_transform in
lib/halfmd4.c and ext4fs_dirhash in fs/ext4/hash.c in the kernel's sources).

Names are hashed side by side. An integer of Python has any number of bits, so one holds a number
of each of a thousand names, in lanes of 64 bits: 32 for the number, and 32 above it that are 0.
One operation then works on all lanes. With 5 in the first and 0xFFFFFFFF in the second lane::

    lanes           00000000 FFFFFFFF  00000000 00000005
    ones            00000000 00000001  00000000 00000001
    lanes + ones    00000001 00000000  00000000 00000006    a carry stays in its lane,
        & mask      00000000 00000000  00000000 00000006    and is cleared
    lanes << 3      00000007 FFFFFFF8  00000000 00000028
    lanes >> 29     00000000 00000007  FFFFFFF8 00000000    bits that leave a lane get into the
        or-ed       00000007 FFFFFFFF  FFFFFFF8 00000028    upper half of the next one,
        & mask      00000000 FFFFFFFF  00000000 00000028    and are cleared: rotated by 3

A sum of a few numbers of 32 bits, and a shift by less than 32, need no more room than a lane has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from struct import Struct, unpack

CHUNK_SIZE = 32
"""Bytes of a name that are hashed at once."""
WORDS = CHUNK_SIZE // 4
"""Numbers of 32 bits in a chunk."""
END_OF_DIRECTORY = 0xFFFFFFFE
"""The hash that stands for the end of a directory. A name of that hash gets the one before."""

_SEED = Struct("<4I")
_LANE = Struct("<Q")
_MAX_LANES = 1024
"""Names that are hashed side by side. More would not fit into the processor's caches."""
_LOW_32_BITS = 0xFFFFFFFF

_Lanes = int
_State = tuple[_Lanes, _Lanes, _Lanes, _Lanes]


def half_md4(names: Iterable[bytes], hash_seed: bytes) -> dict[bytes, tuple[int, int]]:
    """Two hashes of each name: the major one, which is even, and the minor one.

    Names in a directory are ordered by the major hash, and those of one hash by the minor one.
    ``hash_seed`` is that of the superblock, 16 bytes.
    """
    by_chunks: dict[int, list[bytes]] = {}
    for name in names:
        by_chunks.setdefault(-(-len(name) // CHUNK_SIZE), []).append(name)
    hashes: dict[bytes, tuple[int, int]] = {}
    for chunks, group in by_chunks.items():
        for start in range(0, len(group), _MAX_LANES):
            side_by_side = group[start : start + _MAX_LANES]
            hashes.update(zip(side_by_side, _hash(side_by_side, chunks, hash_seed), strict=True))
    return hashes


def _hash(names: Sequence[bytes], chunks: int, hash_seed: bytes) -> Iterator[tuple[int, int]]:
    """The hashes of names that all have that number of chunks."""
    lanes = Struct(f"<{len(names)}Q")
    ones = int.from_bytes(_LANE.pack(1) * len(names), "little")
    a, b, c, d = _SEED.unpack(hash_seed)
    state = a * ones, b * ones, c * ones, d * ones
    for start in range(0, chunks * CHUNK_SIZE, CHUNK_SIZE):
        text = b"".join([chunk(name[start:]) for name in names])
        words = unpack(f">{len(names) * WORDS}I", text)
        columns = [lanes.pack(*words[column::WORDS]) for column in range(WORDS)]
        state = _transform(state, [int.from_bytes(column, "little") for column in columns], ones)
    size = len(names) * _LANE.size
    _, b, c, _ = state
    majors, minors = (lanes.unpack(number.to_bytes(size, "little")) for number in (b, c))
    for major, minor in zip(majors, minors, strict=True):
        even = major & ~1
        yield (even if even != END_OF_DIRECTORY else even - 2), minor


def chunk(text: bytes) -> bytes:
    """The first 32 bytes of a text, as eight big-endian words.

    A shorter text is filled up with bytes that are its length (str2hashbuf_unsigned in
    fs/ext4/hash.c).
    """
    length = len(text)
    if length >= CHUNK_SIZE:
        return text[:CHUNK_SIZE]
    pad = _LENGTHS[length]
    whole = length & ~3
    # The word in which the text ends is filled up before its bytes.
    return (text[:whole] + pad * (4 - length % 4) + text[whole:]).ljust(CHUNK_SIZE, pad)


_LENGTHS = [bytes([length]) for length in range(CHUNK_SIZE)]


def _transform(state: _State, words: Sequence[_Lanes], ones: _Lanes) -> _State:
    """Half the steps of MD4's compression (RFC 1320, section 3.4), in each lane.

    ``words`` are those of a chunk, ``ones`` is 1 in each lane.
    """
    m, second, third = _LOW_32_BITS * ones, 0x5A827999 * ones, 0x6ED9EBA1 * ones
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
