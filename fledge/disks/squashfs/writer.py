"""Writes an image from a tree: contents first, then the tables that `structures` draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from operator import attrgetter
from typing import BinaryIO, NamedTuple

from fledge.disks.squashfs import fits
from fledge.disks.squashfs.codecs import compressor
from fledge.disks.squashfs.constants import MAGIC, SUPERBLOCK_SIZE
from fledge.disks.squashfs.data import DataWriter
from fledge.disks.squashfs.fits import seconds
from fledge.disks.squashfs.inodes import InodeWriter
from fledge.disks.squashfs.metadata import lookup_table
from fledge.disks.squashfs.structures import (
    GZIP_OPTIONS,
    ID,
    METADATA_HEADER,
    METADATA_PLAIN,
    NONE,
    PADDING,
    REFERENCE,
    SUPERBLOCK,
    ZSTD_OPTIONS,
    Codec,
    Flag,
    GzipOptions,
    Superblock,
    ZstdOptions,
)
from fledge.report import Transfer
from fledge.tree import Directory, File, Node, Tree

_USUAL_LEVELS = {Codec.GZIP: 9, Codec.ZSTD: 15}
"""The levels that need no options: those of mksquashfs when it is told nothing."""
_GZIP_WINDOW = 15


class Geometry(NamedTuple):
    """How an image is cut and compressed."""

    block_size: int
    """Bytes in a data block."""
    codec: Codec
    level: int
    """How hard to compress, in the codec's own numbers."""


def write(tree: Tree, file: BinaryIO, geometry: Geometry, progress: Transfer) -> None:
    """Write an image to an empty file.

    ``progress`` is told the bytes of contents. Raises as `DataWriter.write`, and as `fits.check`.
    """
    numbers = _numbers(tree)
    links = Counter(node for _, node in tree.walk())
    fits.check(tree, geometry.block_size)
    compress = compressor(geometry.codec, geometry.level)
    options = _options(geometry)
    file.write(bytes(SUPERBLOCK_SIZE) + options)
    data = DataWriter(file, geometry.block_size, compress, progress)
    # What a later source adds moves nothing of an earlier one.
    files = dict.fromkeys(node for _, node in tree.walk() if isinstance(node, File))
    data.write(sorted(files, key=attrgetter("origin")))
    inodes = InodeWriter(numbers, links, data.files, compress)
    root = inodes.write(tree)

    def put(table: bytes) -> int:
        position = file.tell()
        file.write(table)
        return position

    def put_lookup(records: Iterable[bytes]) -> int:
        table, index = lookup_table(records, file.tell(), compress)
        file.write(table)
        return index

    flags = Flag.ALWAYS_FRAGMENTS | Flag.DUPLICATES | Flag.EXPORT
    flags |= (Flag.OPTIONS if options else 0) | (0 if inodes.xattrs else Flag.NO_XATTRS)
    # The order of the fields is not that of the tables.
    inode_table, directory_table = put(inodes.stream.finish()), put(inodes.listings.finish())
    fragment_table = put_lookup(data.fragments) if data.fragments else NONE
    export_table = put_lookup(map(REFERENCE.pack, inodes.references()))
    id_table = put_lookup(map(ID.pack, inodes.ids))
    xattrs, xattr_table = inodes.xattrs.finish(file.tell())
    put(xattrs)
    superblock = Superblock(
        magic=MAGIC,
        inodes=len(numbers),
        mkfs_time=seconds(tree.mtime_ns),
        block_size=geometry.block_size,
        fragments=len(data.fragments),
        compression=geometry.codec,
        block_log=geometry.block_size.bit_length() - 1,
        flags=flags,
        ids=len(inodes.ids),
        major=4,
        minor=0,
        root_inode=root,
        bytes_used=file.tell(),
        id_table=id_table,
        xattr_table=xattr_table,
        inode_table=inode_table,
        directory_table=directory_table,
        fragment_table=fragment_table,
        export_table=export_table,
    )
    file.write(bytes(-superblock.bytes_used % PADDING))
    file.seek(0)
    file.write(SUPERBLOCK.pack(superblock))


def _numbers(tree: Tree) -> dict[Node, int]:
    """Number the inodes from 1 on: the root, then the entries of each directory, as they come."""
    numbers: dict[Node, int] = {tree.root: 1}
    for _, node in tree.walk():
        if isinstance(node, Directory):
            for _, child in sorted(node.children.items()):
                numbers.setdefault(child, len(numbers) + 1)
    return numbers


def _options(geometry: Geometry) -> bytes:
    """Return the piece of metadata with the compressor's options; empty if they are the usual."""
    codec, level = geometry.codec, geometry.level
    if codec is Codec.GZIP:
        # Programs refuse the levels that zlib has not.
        level = min(level, _USUAL_LEVELS[codec])
        options = GZIP_OPTIONS.pack(GzipOptions(level, _GZIP_WINDOW, 0))
    else:
        options = ZSTD_OPTIONS.pack(ZstdOptions(level))
    if level == _USUAL_LEVELS[codec]:
        return b""
    return METADATA_HEADER.pack(len(options) | METADATA_PLAIN) + options
