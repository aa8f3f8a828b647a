"""Writes a planned filesystem from its first block to its last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import BinaryIO

from fledge.disks.erofs import directory, xattr
from fledge.disks.erofs.compression import INDEX_ALIGNMENT, configuration, pack_indexes
from fledge.disks.erofs.constants import MAGIC, SUPERBLOCK_OFFSET
from fledge.disks.erofs.directory import FILE_TYPES
from fledge.disks.erofs.plan import Chunks, Placement, Plan
from fledge.disks.erofs.structures import (
    BLOCK_BITS,
    BLOCK_SIZE,
    CHUNK_ADDRESS,
    EXTENDED,
    HOLE,
    INODE,
    SUPERBLOCK,
    ChunkAddress,
    Compat,
    DataLayout,
    Incompat,
    Inode,
    Superblock,
    checked_superblock,
    pack_seconds,
)
from fledge.host.copier import Copier
from fledge.host.output import Hasher, Output
from fledge.report import Transfer
from fledge.tree import NANOSECONDS, Device, Directory, File, Node, Symlink
from fledge.tree.device_numbers import encode_device

ADDRESSES_AT_ONCE = 1 << 16
"""Addresses of chunks that are packed together."""


def write(plan: Plan, file: BinaryIO, epoch: int, hasher: Hasher, progress: Transfer) -> None:
    """Write a planned filesystem to an open file. ``hasher`` receives all of it.

    ``epoch`` is the time of the filesystem in seconds since 1970. ``progress`` is told the bytes.
    Raises `FledgeError` if a content cannot be read, `OSError` if the disk refuses.
    """
    output = Output(file.fileno(), hasher, progress)
    with closing(output), closing(Copier(output)) as copier:
        _Writer(plan, output, copier, epoch).write()
        output.finish(plan.blocks * BLOCK_SIZE)


class _Writer:
    """Writes one filesystem."""

    def __init__(self, plan: Plan, output: Output, copier: Copier, epoch: int) -> None:
        self.plan = plan
        self.output = output
        self.copier = copier
        self.epoch = epoch

    def write(self) -> None:
        """Write everything in the order of its position."""
        self.output.write(checked_superblock(self._first_block()), 0)
        for node, placement in self.plan.placements.items():
            position = placement.position
            for piece in self._inode(node, placement):
                self.output.write(piece, position)
                position += len(piece)
        self.output.write(self.plan.shared_xattrs, self.plan.xattr_block * BLOCK_SIZE)
        files = []
        for node, placement in self.plan.placements.items():
            if isinstance(node, File):
                files.append((node, placement))
            elif placement.blocks:
                size = placement.size - placement.tail
                self.output.write(self._bytes(node)[:size], placement.block * BLOCK_SIZE)
        for file, placement in files:
            if placement.blocks:
                self._copy(file, placement)

    def _first_block(self) -> bytes:
        """The superblock, still without its checksum."""
        plan = self.plan
        incompat = Incompat(0)
        if plan.codec is not None:
            incompat |= Incompat.ZERO_PADDING | Incompat.COMPR_CFGS
        if plan.has_chunks:
            incompat |= Incompat.CHUNKED_FILE
        superblock = Superblock(
            magic=MAGIC,
            checksum=0,
            feature_compat=Compat.SB_CHKSUM | Compat.MTIME,
            block_bits=BLOCK_BITS,
            extension_slots=0,
            root_nid=next(iter(plan.placements.values())).nid,
            inodes=len(plan.placements),
            build_time=pack_seconds(self.epoch),
            build_time_nsec=0,
            blocks=plan.blocks,
            meta_blkaddr=0,
            xattr_blkaddr=plan.xattr_block,
            uuid=plan.uuid,
            volume_name=b"",
            feature_incompat=incompat,
            codecs=0 if plan.codec is None else 1 << plan.codec,
            extra_devices=0,
            device_table=0,
            directory_block_bits=0,
            xattr_prefixes=0,
            xattr_prefix_start=0,
            packed_nid=0,
        )
        codecs = b"" if plan.codec is None else configuration(plan.codec)
        return (bytes(SUPERBLOCK_OFFSET) + SUPERBLOCK.pack(superblock) + codecs).ljust(
            BLOCK_SIZE, b"\0"
        )

    def _inode(self, node: Node, placement: Placement) -> Iterator[bytes]:
        """Yield an inode and all that is behind it."""
        seconds, nanoseconds = divmod(node.mtime_ns, NANOSECONDS)
        inode = Inode(
            format=EXTENDED | placement.layout << 1,
            xattr_count=xattr.count(placement.xattrs),
            mode=node.file_type | (0o777 if isinstance(node, Symlink) else node.mode),
            size=placement.size,
            union=_union(node, placement),
            number=placement.number,
            uid=node.uid,
            gid=node.gid,
            mtime=pack_seconds(seconds),
            mtime_nsec=nanoseconds,
            links=node.links if isinstance(node, Directory) else self.plan.links[node],
        )
        head = INODE.pack(inode) + placement.xattrs
        if placement.tail:
            yield head + self._tail(node, placement)
        elif placement.chunks:
            yield head
            yield from _addresses(placement.chunks, placement.block)
        elif placement.compressed:
            yield head + bytes(-len(head) % INDEX_ALIGNMENT)
            clusters = -(-placement.size // BLOCK_SIZE)
            yield from pack_indexes(placement.compressed, placement.block, clusters)
        else:
            yield head

    def _tail(self, node: Node, placement: Placement) -> bytes:
        start = placement.size - placement.tail
        if isinstance(node, File):
            return self.copier.read_tail(node, start)
        return self._bytes(node)[start:]

    def _bytes(self, node: Node) -> bytes:
        """The content of a directory or symlink; empty for others."""
        if isinstance(node, Symlink):
            return node.target
        if not isinstance(node, Directory):
            return b""
        placements = self.plan.placements
        parent = placements[self.plan.parents[node]].nid
        directory_type = FILE_TYPES[node.file_type]
        return directory.pack(
            [
                (b".", placements[node].nid, directory_type),
                (b"..", parent, directory_type),
                *(
                    (name, placements[child].nid, FILE_TYPES[child.file_type])
                    for name, child in node.children.items()
                ),
            ]
        )

    def _copy(self, file: File, placement: Placement) -> None:
        """Copy a content to its blocks."""
        position = placement.block * BLOCK_SIZE
        if compressed := placement.compressed:
            stored = File(mode=0, content=compressed.data)
            self.copier.copy(stored, 0, compressed.data.size, position)
        elif chunks := placement.chunks:
            for run in chunks.runs:
                offset = run.start * chunks.size
                length = min(run.length * chunks.size, placement.size - offset)
                self.copier.copy(file, offset, length, position)
                position += run.length * chunks.size
        else:
            self.copier.copy(file, 0, placement.size - placement.tail, position)


def _union(node: Node, placement: Placement) -> int:
    """The field of an inode whose meaning depends on its content."""
    if isinstance(node, Device):
        return encode_device(node.major, node.minor)
    if placement.layout is DataLayout.CHUNK_BASED and placement.chunks:
        return placement.chunks.bits
    if placement.layout is DataLayout.COMPRESSED_FULL:
        return placement.blocks
    return placement.block


def _addresses(chunks: Chunks, block: int) -> Iterator[bytes]:
    """Yield the block map of a content whose data begins at ``block``."""
    hole = CHUNK_ADDRESS.pack(ChunkAddress(HOLE))
    end = 0
    for run in chunks.runs:
        yield from _repeated(hole, run.start - end)
        for index in range(run.length):
            yield CHUNK_ADDRESS.pack(ChunkAddress(block + (index << chunks.bits)))
        block += run.length << chunks.bits
        end = run.start + run.length
    yield from _repeated(hole, chunks.total - end)


def _repeated(packed: bytes, count: int) -> Iterator[bytes]:
    for start in range(0, count, ADDRESSES_AT_ONCE):
        yield packed * min(ADDRESSES_AT_ONCE, count - start)
