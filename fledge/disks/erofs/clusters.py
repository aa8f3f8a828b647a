"""Finds the extents of compressed contents in an image.

`fledge.disks.erofs.compression` describes indexes of 8 bytes. In compact form they have 14 or 16
bits, in packs that end with an address, from which those of the extents in the pack follow::

    2 clusters    │ 16 bits │ 16 bits │ address │            8 bytes
    16 clusters   │ 14 bits │ 14 bits │ … │ address │        32 bytes

Packs of 16 begin at multiples of 32 bytes; packs of 2 are before and behind them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fledge.disks.erofs.compression import (
    BLOCK_COUNT,
    HEADER,
    INDEX,
    INDEX_ALIGNMENT,
    INDEX_START,
    NONHEAD_INDEX,
    PARTIAL,
    TYPE_BITS,
    Advise,
    ClusterType,
    Codec,
    Header,
)
from fledge.disks.erofs.structures import DataLayout
from fledge.disks.erofs.volume import StoredInode, Volume
from fledge.errors import MalformedError

MAX_DATA_SIZE = 1 << 20
"""Bytes of the compressed data of one extent (Z_EROFS_PCLUSTER_MAX_SIZE)."""
MAX_EXTENT_SIZE = 12 << 20
"""Bytes of one extent (Z_EROFS_PCLUSTER_MAX_DSIZE)."""
MAX_COMPACT_BITS = 14
"""The base-2 logarithm of the largest clusters with compact indexes."""
OFFSET_BITS = 12
"""Bits of an offset in a compact index, at least: `BLOCK_COUNT` needs as many."""
ADDRESS_SIZE = 4
"""Bytes of the address in a pack."""

INDEXES_AT_ONCE = 1 << 13


class Extent(NamedTuple):
    """A part of a content. All sizes and positions are in bytes."""

    size: int
    position: int
    """Its data in the image."""
    data_size: int
    codec: Codec | None
    """None: it is not compressed."""


class _Cluster(NamedTuple):
    """An index of either form, decoded."""

    type: int
    offset: int
    """Where the extent begins in the cluster. Of a NONHEAD, any number."""
    block: int
    """The first block of the data of the extent."""
    block_count: int
    """The blocks of the data, in the second cluster of an extent; or else 0."""


class _Head(NamedTuple):
    """The beginning of an extent."""

    number: int
    """Its cluster."""
    offset: int
    """In the content."""
    type: int
    block: int


def extents(volume: Volume, stored: StoredInode) -> Iterator[Extent]:
    """Yield all extents of a compressed content, in order. Raises `MalformedError`."""
    position = stored.end + -stored.end % INDEX_ALIGNMENT
    header = HEADER.unpack_from(volume.read_data(position, HEADER.size))
    bits = volume.superblock.block_bits + (header.cluster_bits & 7)
    if header.cluster_bits & ~7 or header.advise & Advise.FRAGMENT_PCLUSTER:
        raise MalformedError("it has a fragment, and the superblock does not say so")
    if header.advise & Advise.INTERLACED_PCLUSTER:
        raise MalformedError("it has interlaced data, and the superblock does not say so")
    count = -(-stored.inode.size >> bits)
    if stored.inode.layout == DataLayout.COMPRESSED_FULL:
        end = position + INDEX_START + count * INDEX.size
        clusters = _full(volume, position + INDEX_START, count)
    else:
        packs = _packs(position + HEADER.size, count, header, bits)
        last_position, size, _ = packs[-1]
        end = last_position + size
        clusters = _compact(volume, packs, header, bits)
    found = _joined(volume, stored, header, bits, clusters)
    if not header.advise & Advise.INLINE_PCLUSTER:
        return found
    if end % volume.block_size + header.tail_size > volume.block_size:
        raise MalformedError("the end of its data crosses blocks")
    return _with_tail(found, end, header.tail_size)


def _with_tail(found: Iterator[Extent], position: int, size: int) -> Iterator[Extent]:
    """Put the data of the last extent behind the indexes."""
    last = None
    for extent in found:
        if last:
            yield last
        last = extent
    if last:
        yield last._replace(position=position, data_size=size)


def _full(volume: Volume, position: int, count: int) -> Iterator[_Cluster]:
    """Decode indexes of 8 bytes."""
    for first in range(0, count, INDEXES_AT_ONCE):
        length = min(INDEXES_AT_ONCE, count - first)
        data = volume.read_data(position + first * INDEX.size, length * INDEX.size)
        for start in range(0, len(data), INDEX.size):
            index = INDEX.unpack_from(data, start)
            if index.advise & TYPE_BITS == ClusterType.NONHEAD:
                to_head = NONHEAD_INDEX.unpack_from(data, start).to_head
                block_count = to_head & ~BLOCK_COUNT if to_head & BLOCK_COUNT else 0
                yield _Cluster(ClusterType.NONHEAD, 0, 0, block_count)
            elif index.advise & PARTIAL:
                raise MalformedError("it shares data, and the superblock does not say so")
            else:
                yield _Cluster(index.advise & TYPE_BITS, index.offset, index.block, 0)


def _packs(position: int, count: int, header: Header, bits: int) -> list[tuple[int, int, int]]:
    """Return where runs of packs are: (position, bytes, clusters of each pack)."""
    if bits > MAX_COMPACT_BITS:
        raise MalformedError("its clusters are too large")
    first = -position % 32 // 4
    large = 0
    if header.advise & Advise.COMPACTED_2B and first < count:
        if bits > OFFSET_BITS:
            raise MalformedError("its clusters are too large")
        large = (count - first) // 16
    else:
        first = 0
    rest = count - first - large * 16
    runs = [(first // 2, 8, 2), (large, 32, 16), (-(-rest // 2), 8, 2)]
    packs = []
    for number, size, clusters in runs:
        if number:
            packs.append((position, number * size, clusters))
            position += number * size
    return packs


def _compact(
    volume: Volume, packs: list[tuple[int, int, int]], header: Header, bits: int
) -> Iterator[_Cluster]:
    """Decode compact indexes. The last one may be beyond the end of the content."""
    big = bool(header.advise & Advise.BIG_PCLUSTER_1)
    bits = max(bits, OFFSET_BITS)
    for position, run_size, length in packs:
        size = 8 if length == 2 else 32
        for start in range(position, position + run_size, INDEXES_AT_ONCE):
            data = volume.read_data(start, min(INDEXES_AT_ONCE, position + run_size - start))
            for begin in range(0, len(data), size):
                yield from _unpacked(data[begin : begin + size], length, bits, big)


def _unpacked(pack: bytes, length: int, bits: int, big: bool) -> Iterator[_Cluster]:
    """Yield the clusters of one pack."""
    width = (len(pack) - ADDRESS_SIZE) * 8 // length
    number = int.from_bytes(pack[:-ADDRESS_SIZE], "little")
    address = int.from_bytes(pack[-ADDRESS_SIZE:], "little")
    values = [number >> width * n & (1 << width) - 1 for n in range(length)]
    clusters = [(value >> bits & TYPE_BITS, value & (1 << bits) - 1) for value in values]
    for index, (kind, low) in enumerate(clusters):
        if kind != ClusterType.NONHEAD:
            before = _blocks_before(clusters[:index], big)
            yield _Cluster(kind, low, address + before, 0)
        else:
            yield _Cluster(kind, 0, 0, low & ~BLOCK_COUNT if low & BLOCK_COUNT else 0)


def _blocks_before(clusters: list[tuple[int, int]], big: bool) -> int:
    """Return how many blocks after the address of a pack the data of the next extent is.

    ``clusters`` are the types and numbers before it. See unpack_compacted_index in zmap.c.
    """
    index = len(clusters)
    blocks = 0 if big else 1
    while index > 0:
        index -= 1
        kind, low = clusters[index]
        if kind != ClusterType.NONHEAD:
            blocks += 1
        elif not big:
            index -= low
            blocks += index >= 0
        elif low & BLOCK_COUNT:
            index -= 1
            blocks += low & ~BLOCK_COUNT
        elif low <= 1:
            raise MalformedError("its indexes are malformed")
        else:
            index -= low - 2
    return blocks


def _joined(
    volume: Volume, stored: StoredInode, header: Header, bits: int, clusters: Iterator[_Cluster]
) -> Iterator[Extent]:
    """Yield the extents that clusters of ``1 << bits`` bytes make up."""
    size = stored.inode.size
    head: _Head | None = None
    count = 0
    for number, cluster in enumerate(clusters):
        if cluster.type == ClusterType.NONHEAD:
            if cluster.block_count and (head is None or number != head.number + 1):
                raise MalformedError("its indexes are malformed")
            count = count or cluster.block_count
            continue
        offset = (number << bits) + cluster.offset
        if cluster.offset >> bits or (head is None and offset):
            raise MalformedError("its indexes are malformed")
        # The last index may say where the content ends.
        if offset >= size:
            break
        if head:
            yield _extent(volume, header, bits, head, count, offset)
        head, count = _Head(number, offset, cluster.type, cluster.block), 0
    if head is None:
        raise MalformedError("its indexes are malformed")
    yield _extent(volume, header, bits, head, count, size)


def _extent(volume: Volume, header: Header, bits: int, head: _Head, count: int, end: int) -> Extent:
    """Return the extent from ``head`` to ``end``. ``count`` of blocks; 0: one cluster."""
    size = end - head.offset
    is_big = {
        ClusterType.HEAD: Advise.BIG_PCLUSTER_1,
        ClusterType.HEAD2: Advise.BIG_PCLUSTER_2,
    }.get(ClusterType(head.type), 0)
    if count and not header.advise & is_big:
        raise MalformedError("its indexes are malformed")
    data_size = count * volume.block_size or 1 << bits
    if data_size > MAX_DATA_SIZE or not 0 < size <= MAX_EXTENT_SIZE:
        raise MalformedError("one of its extents is too large")
    position = head.block * volume.block_size
    if head.type == ClusterType.PLAIN:
        if size > data_size:
            raise MalformedError("one of its extents has too little data")
        return Extent(size, position, size, None)
    codec = header.codecs >> 4 if head.type == ClusterType.HEAD2 else header.codecs & 0xF
    if codec not in {Codec.LZ4, Codec.ZSTD}:
        raise MalformedError(
            f"it is compressed by codec {codec}, and the superblock does not say so"
        )
    return Extent(size, position, data_size, Codec(codec))
