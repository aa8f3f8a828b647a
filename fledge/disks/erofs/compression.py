"""The structures of compressed contents.

A content is divided into clusters, which fledge makes as large as blocks, and into extents of
several clusters each. An extent is compressed as a whole into as few blocks as it takes, of which
the last ones are full (Incompat.ZERO_PADDING)::

    content  │ cluster │ cluster │ cluster │ cluster │ cluster │ …
             └─ extent ──────────────────────────────┘
    blocks   │ zeros, compressed data │ compressed data │ …

    indexes  │ HEAD: block │ NONHEAD: 2 blocks │ NONHEAD │ NONHEAD │ HEAD …

Each cluster has an index. That of the first one of an extent says where the data is. That of the
second one says how many blocks it takes, and all others how far away the first one and the next
extent are. Clusters that do not get smaller are PLAIN, and each has a block of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum, IntFlag
from typing import Annotated, NamedTuple

import msgspec

from fledge.disks.erofs.structures import BLOCK_SIZE
from fledge.tree.binary import Layout, u8, u16, u32
from fledge.tree.content import Span


class Codec(IntEnum):
    """The numbers of codecs (Z_EROFS_COMPRESSION_LZ4 and others)."""

    LZ4 = 0
    LZMA = 1
    DEFLATE = 2
    ZSTD = 3


class Lz4Configuration(NamedTuple):
    """struct z_erofs_lz4_cfgs."""

    max_distance: Annotated[int, u16(0x0)]
    """Bytes of the window; 0: 64 KiB."""
    max_blocks: Annotated[int, u16(0x2)]
    """Blocks that the data of one extent can take."""


class ZstdConfiguration(NamedTuple):
    """struct z_erofs_zstd_cfgs."""

    format: Annotated[int, u8(0x0)]
    window_log: Annotated[int, u8(0x1)]
    """The base-2 logarithm of the largest window, less 10."""


class ConfigurationSize(NamedTuple):
    """The bytes of the configuration that follows."""

    size: Annotated[int, u16(0x0)]


class Header(NamedTuple):
    """struct z_erofs_map_header, before the indexes of a content."""

    fragment_offset: Annotated[int, u16(0x0)]
    tail_size: Annotated[int, u16(0x2)]
    """Bytes of the compressed data that follows the indexes (ZTAILPACKING)."""
    advise: Annotated[int, u16(0x4)]
    codecs: Annotated[int, u8(0x6)]
    """The codec of HEAD in the lower four bits, that of HEAD2 in the upper ones."""
    cluster_bits: Annotated[int, u8(0x7)]
    """How much larger than blocks clusters are, as a base-2 logarithm in three bits."""


class Advise(IntFlag):
    """The bits of `Header.advise`."""

    COMPACTED_2B = 0x1
    """Some indexes have 2 bytes."""
    BIG_PCLUSTER_1 = 0x2
    """Extents may take several blocks."""
    BIG_PCLUSTER_2 = 0x4
    INLINE_PCLUSTER = 0x8
    """The data of the last extent follows the indexes."""
    INTERLACED_PCLUSTER = 0x10
    FRAGMENT_PCLUSTER = 0x20


class ClusterType(IntEnum):
    """The type of a cluster, in the lowest bits of `Index.advise`."""

    PLAIN = 0
    HEAD = 1
    NONHEAD = 2
    HEAD2 = 3


TYPE_BITS = 0x3
PARTIAL = 1 << 15
"""The bit of `Index.advise` in an extent that is only a part of its compressed data (DEDUPE)."""
BLOCK_COUNT = 1 << 11
"""The bit of `NonheadIndex.to_head` by which it is a number of blocks."""


class Index(NamedTuple):
    """struct z_erofs_lcluster_index of a cluster in which an extent begins."""

    advise: Annotated[int, u16(0x0)]
    offset: Annotated[int, u16(0x2)]
    """Where in the cluster the extent begins."""
    block: Annotated[int, u32(0x4)]
    """The first block of its data."""


class NonheadIndex(NamedTuple):
    """struct z_erofs_lcluster_index of any other cluster."""

    advise: Annotated[int, u16(0x0)]
    offset: Annotated[int, u16(0x2)]
    to_head: Annotated[int, u16(0x4)]
    """Clusters back to the first one of the extent, or `BLOCK_COUNT` and a number of blocks."""
    to_next: Annotated[int, u16(0x6)]
    """Clusters to the next extent."""


HEADER = Layout(Header, size=8)
LZ4_CONFIGURATION = Layout(Lz4Configuration, size=14)
ZSTD_CONFIGURATION = Layout(ZstdConfiguration, size=6)
CONFIGURATION_SIZE = Layout(ConfigurationSize, size=2)
INDEX = Layout(Index, size=8)
NONHEAD_INDEX = Layout(NonheadIndex, size=8)

INDEX_ALIGNMENT = 8
"""Bytes. The header is at a multiple of it."""
INDEX_START = HEADER.size + 8
"""Bytes from the header to the first index of 8 bytes (Z_EROFS_FULL_INDEX_ALIGN)."""

EXTENT_BLOCKS = {Codec.LZ4: 16, Codec.ZSTD: 32}
"""The clusters of an extent. To read one byte of it, the kernel decompresses what is before. LZ4
looks back 64 KiB at most."""


class Compressed(msgspec.Struct, frozen=True):
    """A compressed content."""

    codec: Codec
    block_counts: bytes
    """The blocks of the data of each extent. 0: it does not get smaller and stays as it is."""
    data: Span
    """All blocks, one after the other."""

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return self.data.size // BLOCK_SIZE


def configuration(codec: Codec) -> bytes:
    """Return the configuration of a codec, with its size before it."""
    blocks = EXTENT_BLOCKS[codec]
    if codec is Codec.LZ4:
        packed = LZ4_CONFIGURATION.pack(Lz4Configuration(0, blocks))
    else:
        window_log = (blocks * BLOCK_SIZE).bit_length() - 1
        packed = ZSTD_CONFIGURATION.pack(ZstdConfiguration(0, window_log - 10))
    return CONFIGURATION_SIZE.pack(ConfigurationSize(len(packed))) + packed


def indexes_size(clusters: int) -> int:
    """Return the bytes of the header and the indexes of so many clusters."""
    return INDEX_START + clusters * INDEX.size


def pack_indexes(content: Compressed, block: int, clusters: int) -> Iterator[bytes]:
    """Yield the header and the indexes of a content of so many clusters, extent by extent.

    ``block`` is the first block of its data.
    """
    header = Header(0, 0, Advise.BIG_PCLUSTER_1, content.codec, 0)
    yield HEADER.pack(header).ljust(INDEX_START, b"\0")
    most = EXTENT_BLOCKS[content.codec]
    for count in content.block_counts:
        length = min(most, clusters)
        clusters -= length
        if count:
            yield INDEX.pack(Index(ClusterType.HEAD, 0, block))
            yield from map(NONHEAD_INDEX.pack, _nonheads(length, count))
        else:
            yield b"".join(
                INDEX.pack(Index(ClusterType.PLAIN, 0, block + n)) for n in range(length)
            )
        block += count or length


def _nonheads(length: int, count: int) -> Iterable[NonheadIndex]:
    """Return the indexes of an extent of ``length`` clusters, without the first one."""
    for n in range(1, length):
        to_head = BLOCK_COUNT | count if n == 1 else n
        yield NonheadIndex(ClusterType.NONHEAD, 0, to_head, length - n)
