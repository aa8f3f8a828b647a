"""Writes a planned filesystem from its first block to its last."""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from heapq import merge
from itertools import chain, islice
from operator import itemgetter
from stat import S_IFREG
from typing import BinaryIO

from fledge.ext4 import directory, structures, xattr
from fledge.ext4.constants import MAGIC, SUPERBLOCK_OFFSET
from fledge.ext4.directory import FILE_TYPES
from fledge.ext4.inodes import ExtentTree
from fledge.ext4.plan import (
    GROUPS_PER_FLEX,
    POINTERS_PER_BLOCK,
    Plan,
    run_before,
)
from fledge.ext4.structures import (
    BLOCK_SIZE,
    BLOCKS_PER_GROUP,
    DIRECT_BLOCKS,
    INODE,
    INODE_BLOCK_SIZE,
    INODE_SIZE,
    JOURNAL,
    LOST_AND_FOUND,
    RESIZE,
    ROOT,
    SECTOR_SIZE,
    XATTR_SPACE,
    Extent,
    GroupDescriptor,
    Inode,
    InodeFlag,
    RoCompat,
    Superblock,
    around_block,
    checksum,
    inode_seed,
    pack_device,
    pack_extent,
    pack_extents,
    pack_journal,
    pack_time,
)
from fledge.host.copier import Copier, is_plain
from fledge.host.output import Hasher, Output
from fledge.report import Transfer
from fledge.tree import NANOSECONDS, Device, Directory, File, Node, Symlink
from fledge.tree.content import Span, content_size

SECTORS_PER_BLOCK = BLOCK_SIZE // SECTOR_SIZE
DOUBLY_INDIRECT = 13
"""The index of the pointer, in an inode without extents, to a block of pointers to blocks of
pointers."""
SMALL_FILE = 2
"""Blocks of a file that is copied together with others. Larger ones cost more to copy twice than
to read one by one."""
MAX_TOGETHER = 64
"""Blocks that are copied together, but for those of the last file."""


def write(
    plan: Plan,
    file: BinaryIO,
    epoch: int,
    hasher: Hasher | None = None,
    progress: Transfer | None = None,
) -> None:
    """Make the open file what is planned; ``hasher`` is handed all of it.

    ``epoch`` is the time of the filesystem in seconds since 1970. ``progress`` is told the bytes.
    Raises `FledgeError` if a content cannot be read, `OSError` if the disk refuses.
    """
    # Truncating an empty file would make closing it wait for the disk.
    if file.seek(0, os.SEEK_END):
        file.truncate(0)
    output = Output(file.fileno(), hasher, progress)
    with closing(output), closing(Copier(output)) as copier:
        _Writer(plan, output, copier, epoch).write()
        output.finish(plan.geometry.blocks * BLOCK_SIZE)


_Job = tuple[int, Callable[[], None]]
"""The block at which something is to be written, and the function that writes it."""


class _Writer:
    """Writes one filesystem."""

    def __init__(self, plan: Plan, output: Output, copier: Copier, epoch: int) -> None:
        self.plan = plan
        self.output = output
        self.copier = copier
        self.epoch = epoch
        self.seed = structures.CHECKSUM_SEED
        per_group = plan.geometry.inodes_per_group
        self.directories = Counter((number - 1) // per_group for number in plan.inodes.parents)
        """How many directories each group has."""

    def write(self) -> None:
        """Write everything in the order of its position."""
        own = sorted(self._own_jobs(), key=itemgetter(0))
        for _, job in merge(own, self._metadata_jobs(), self._file_jobs(), key=itemgetter(0)):
            job()

    def _own_jobs(self) -> Iterator[_Job]:
        """Everything that belongs to the filesystem itself."""
        plan = self.plan
        geometry = plan.geometry
        descriptors = b"".join(map(self._descriptor, range(geometry.groups)))
        for number in geometry.copy_groups:
            yield number * BLOCKS_PER_GROUP, partial(self._put_copy, number, descriptors)
        for number, group in enumerate(plan.groups):
            yield group.block_bitmap, partial(self._put_block_bitmap, number)
            yield group.inode_bitmap, partial(self._put_inode_bitmap, number)
            yield group.inode_table, partial(self._put_inode_table, number)
        if plan.journal and plan.resize_block:
            yield from self._extent_tree_jobs(JOURNAL, plan.journal)
            first = plan.journal.extents[0].physical
            yield first, partial(self._put_journal, first)
            yield plan.resize_block, partial(self._put_resize_block, plan.resize_block)

    def _metadata_jobs(self) -> Iterator[_Job]:
        """The blocks of directories, long symlinks and extended attributes, in their order."""
        inodes = self.plan.inodes
        for number in inodes.metadata:
            node, tree = inodes.nodes[number], inodes.extent_tree(number)
            if node and (position := inodes.xattr_blocks.get(number)):
                yield position, partial(self._put_xattrs, node, position)
            if isinstance(node, Directory):
                blocks = self._directory(number, node)
                for extent in tree.extents:
                    job = partial(self._put_blocks, blocks, extent.length, extent.physical)
                    yield extent.physical, job
            elif isinstance(node, Symlink) and tree.extents:
                first = tree.extents[0].physical
                yield first, partial(self._put, node.target, first)
            if not isinstance(node, File):
                yield from self._extent_tree_jobs(number, tree)

    def _file_jobs(self) -> Iterator[_Job]:
        """The contents of files, in the order of their blocks; small ones together."""
        inodes = self.plan.inodes
        small: list[Span] = []
        start = end = 0
        """The blocks of those in ``small``."""
        for number in chain.from_iterable(inodes.files):
            file, blocks, first = inodes.nodes[number], inodes.blocks[number], inodes.starts[number]
            if not isinstance(file, File):
                continue
            content = file.content
            is_small = blocks <= SMALL_FILE and number not in inodes.trees and is_plain(content)
            if small and not (is_small and first == end and end - start < MAX_TOGETHER):
                yield start, partial(self._copy_small, small, start)
                small = []
            if is_small and is_plain(content):
                start = start if small else first
                end = first + blocks
                small.append(content)
                continue
            tree = inodes.extent_tree(number)
            for extent in tree.extents:
                yield extent.physical, partial(self._copy, file, extent)
            yield from self._extent_tree_jobs(number, tree)
        if small:
            yield start, partial(self._copy_small, small, start)

    def _extent_tree_jobs(self, number: int, tree: ExtentTree) -> Iterator[_Job]:
        blocks = self._extent_tree_blocks(number, tree)
        for position in tree.node_blocks:
            yield position, partial(self._put_blocks, blocks, 1, position)

    def _copy(self, file: File, extent: Extent) -> None:
        offset = extent.logical * BLOCK_SIZE
        length = min(extent.length * BLOCK_SIZE, content_size(file.content) - offset)
        self.copier.copy(file, offset, length, extent.physical * BLOCK_SIZE)

    def _copy_small(self, contents: Sequence[Span], first: int) -> None:
        self.copier.copy_small(contents, first * BLOCK_SIZE, BLOCK_SIZE)

    def _put(self, data: bytes, block: int) -> None:
        self.output.write(data, block * BLOCK_SIZE)

    def _put_copy(self, group: int, descriptors: bytes) -> None:
        """A copy of the superblock, with the descriptors and the blocks reserved for more."""
        block = group * BLOCKS_PER_GROUP
        superblock = self._superblock(group).pack()
        self.output.write(superblock, block * BLOCK_SIZE + (0 if group else SUPERBLOCK_OFFSET))
        self._put(descriptors, block + 1)
        if group == 0:
            others = self.plan.geometry.copy_groups[1:]
            for position in self._reserved:
                copies = [other * BLOCKS_PER_GROUP + position for other in others]
                self._put(_pointers(copies), position)

    @property
    def _reserved(self) -> range:
        """The blocks of the first group that are reserved for descriptors."""
        first = 1 + self.plan.geometry.descriptor_blocks
        return range(first, first + self.plan.geometry.reserved_blocks)

    def _superblock(self, group: int) -> Superblock:
        geometry, journal = self.plan.geometry, self.plan.journal
        backup = b""
        if journal:
            size = struct.pack("<II", *divmod(geometry.journal_blocks * BLOCK_SIZE, 1 << 32))
            backup = self._extents(JOURNAL, journal)[0] + size
        read_only = RoCompat.READONLY if geometry.read_only else 0
        return Superblock(
            inodes_count=geometry.inodes,
            blocks_count=geometry.blocks,
            reserved_blocks_count=0,
            free_blocks_count=sum(run.length for run in self.plan.free),
            free_inodes_count=geometry.inodes - self.plan.inodes.last,
            first_data_block=0,
            log_block_size=structures.LOG_BLOCK_SIZE,
            log_cluster_size=structures.LOG_BLOCK_SIZE,
            blocks_per_group=BLOCKS_PER_GROUP,
            clusters_per_group=BLOCKS_PER_GROUP,
            inodes_per_group=geometry.inodes_per_group,
            mtime=0,
            wtime=self.epoch,
            mnt_count=0,
            max_mnt_count=structures.NEVER,
            magic=MAGIC,
            state=structures.CLEAN,
            errors=structures.CONTINUE_ON_ERRORS,
            lastcheck=self.epoch,
            rev_level=structures.DYNAMIC_REVISION,
            first_ino=LOST_AND_FOUND,
            inode_size=structures.INODE_SIZE,
            block_group_nr=group & 0xFFFF,  # as mke2fs truncates it
            feature_compat=structures.COMPAT if journal else structures.READ_ONLY_COMPAT,
            feature_incompat=structures.INCOMPAT,
            feature_ro_compat=structures.RO_COMPAT | read_only,
            uuid=self.plan.uuid,
            volume_name=b"",
            last_mounted=b"",
            reserved_gdt_blocks=geometry.reserved_blocks,
            journal_inum=JOURNAL if journal else 0,
            last_orphan=0,
            hash_seed=structures.HASH_SEED,
            def_hash_version=structures.HALF_MD4,
            jnl_backup_type=structures.JOURNAL_BACKUP if journal else 0,
            desc_size=structures.DESCRIPTOR_SIZE,
            default_mount_opts=structures.XATTRS_AND_ACLS,
            first_meta_bg=0,
            mkfs_time=self.epoch,
            jnl_blocks=backup,
            min_extra_isize=structures.EXTRA_ISIZE,
            want_extra_isize=structures.EXTRA_ISIZE,
            flags=structures.UNSIGNED_HASH,
            log_groups_per_flex=GROUPS_PER_FLEX.bit_length() - 1,
            checksum_type=structures.CRC32C,
            kbytes_written=0,
            overhead_clusters=geometry.overhead,
            backup_group_1=0,
            backup_group_2=0,
            checksum_seed=self.seed,
        )

    def _descriptor(self, group: int) -> bytes:
        blocks = self.plan.groups[group]
        per_group = self.plan.geometry.inodes_per_group
        block_bitmap, inode_bitmap = self._block_bitmap(group), self._inode_bitmap(group)
        unused = per_group - self._used_inodes(group)
        return GroupDescriptor(
            block_bitmap=blocks.block_bitmap,
            inode_bitmap=blocks.inode_bitmap,
            inode_table=blocks.inode_table,
            free_blocks_count=sum(end - start for start, end in self._free_in(group)),
            free_inodes_count=unused,
            used_dirs_count=self.directories[group],
            flags=structures.ZEROED,
            block_bitmap_csum=checksum(self.seed, block_bitmap),
            inode_bitmap_csum=checksum(self.seed, inode_bitmap[: per_group // 8]),
            itable_unused=unused,
        ).pack(group, self.seed)

    def _free_in(self, group: int) -> Iterator[tuple[int, int]]:
        """The begin and end of each free run in a group, counted from its first block."""
        first = group * BLOCKS_PER_GROUP
        free = self.plan.free
        for run in islice(free, run_before(free, first), None):
            begin = max(run.start - first, 0)
            end = min(run.start + run.length - first, BLOCKS_PER_GROUP)
            if begin >= BLOCKS_PER_GROUP:
                break
            if begin < end:
                yield begin, end

    def _used_inodes(self, group: int) -> int:
        """How many inodes of a group are in use. They are the first ones."""
        per_group = self.plan.geometry.inodes_per_group
        return min(max(self.plan.inodes.last - group * per_group, 0), per_group)

    def _block_bitmap(self, group: int) -> bytes:
        bitmap = bytearray(b"\xff" * BLOCK_SIZE)
        for begin, end in self._free_in(group):
            _clear(bitmap, begin, end)
        return bytes(bitmap)

    def _inode_bitmap(self, group: int) -> bytes:
        bitmap = bytearray(b"\xff" * BLOCK_SIZE)
        _clear(bitmap, self._used_inodes(group), self.plan.geometry.inodes_per_group)
        return bytes(bitmap)

    def _put_block_bitmap(self, group: int) -> None:
        self._put(self._block_bitmap(group), self.plan.groups[group].block_bitmap)

    def _put_inode_bitmap(self, group: int) -> None:
        self._put(self._inode_bitmap(group), self.plan.groups[group].inode_bitmap)

    def _put_inode_table(self, group: int) -> None:
        inodes = self.plan.inodes
        first = group * self.plan.geometry.inodes_per_group + 1
        end = first + self._used_inodes(group)
        parts: list[bytes] = []
        for number in range(first, end):
            parts += self._inode_parts(number)
        table = bytearray().join(parts)
        sectors = [blocks * SECTORS_PER_BLOCK for blocks in inodes.blocks[first:end]]
        for number in range(first, end):
            if number in inodes.trees or number in inodes.xattr_blocks:
                sectors[number - first] = inodes.used_blocks(number) * SECTORS_PER_BLOCK
        INODE.fill("size", table, INODE_SIZE, inodes.sizes[first:end])
        INODE.fill("sectors", table, INODE_SIZE, sectors)
        if inodes.xattr_blocks:
            positions = [inodes.xattr_blocks.get(number, 0) for number in range(first, end)]
            INODE.fill("file_acl", table, INODE_SIZE, positions)
        structures.put_inode_checksums(table, first, self.seed)
        for number in range(first, min(end, LOST_AND_FOUND)):
            if number != ROOT:
                place = (number - first) * INODE_SIZE
                table[place : place + INODE_SIZE] = self._reserved_inode(number)
        self._put(bytes(table), self.plan.groups[group].inode_table)

    def _reserved_inode(self, number: int) -> bytes:
        if number == JOURNAL and self.plan.journal:
            return self._journal_inode(self.plan.journal).pack(number, self.seed)
        if number == RESIZE and self.plan.resize_block:
            return self._resize_inode(self.plan.resize_block).pack(number, self.seed)
        return bytes(INODE_SIZE)

    def _inode_parts(self, number: int) -> tuple[bytes, ...]:
        """An inode without its size, sectors, `file_acl` and checksum."""
        inodes = self.plan.inodes
        node = inodes.nodes[number]
        if node is None:
            return (bytes(INODE_SIZE),)
        mode, flags, blocks = node.mode, 0, inodes.blocks[number]
        if blocks or isinstance(node, File):
            flags = InodeFlag.EXTENTS
            if blocks and number not in inodes.trees:
                block = pack_extent(blocks, inodes.starts[number])
            else:
                block, _ = self._extents(number, inodes.extent_tree(number))
        elif isinstance(node, Symlink):
            block = node.target.ljust(INODE_BLOCK_SIZE, b"\0")
        elif isinstance(node, Device):
            block = pack_device(node.major, node.minor)
        else:
            block = bytes(INODE_BLOCK_SIZE)
        if isinstance(node, Symlink):
            mode = 0o777
        elif number in inodes.leaves:
            flags |= InodeFlag.INDEX
        links = inodes.links.get(number, 1)
        before, after = around_block(
            node.file_type | mode, node.uid, node.gid, node.mtime_ns, links, flags
        )
        if node.xattrs:
            xattrs = xattr.pack(node.xattrs).inode.ljust(XATTR_SPACE, b"\0")
            return before, block, after[:-XATTR_SPACE], xattrs
        return before, block, after

    def _extents(self, number: int, tree: ExtentTree) -> tuple[bytes, list[bytes]]:
        seed = inode_seed(self.seed, number) if tree.node_blocks else 0
        return pack_extents(tree.extents, tree.node_blocks, seed)

    def _extent_tree_blocks(self, number: int, tree: ExtentTree) -> Iterator[bytes]:
        yield from self._extents(number, tree)[1]

    def _put_xattrs(self, node: Node, position: int) -> None:
        block = xattr.pack(node.xattrs).block
        self._put(xattr.with_checksum(block, position, self.seed), position)

    def _put_blocks(self, blocks: Iterator[bytes], count: int, position: int) -> None:
        """Write the next ``count`` blocks from ``position`` on; those of one file come in order."""
        self._put(b"".join(islice(blocks, count)), position)

    def _directory(self, number: int, node: Directory) -> Iterator[bytes]:
        inodes = self.plan.inodes
        numbers, parent = inodes.numbers, inodes.parents[number]
        seed = inode_seed(self.seed, number)
        records = {
            name: directory.record(name, numbers[child], FILE_TYPES[child.file_type])
            for name, child in node.children.items()
        }
        if leaves := inodes.leaves.get(number):
            yield from directory.tree_blocks(number, parent, leaves, records, seed)
            return
        ordered = [record for _, record in sorted(records.items())]
        yield directory.linear_block(number, parent, ordered, seed)
        for _ in range(inodes.blocks[number] - 1):
            yield directory.empty_block(seed)

    def _put_journal(self, first: int) -> None:
        self._put(pack_journal(self.plan.geometry.journal_blocks, self.plan.uuid), first)

    def _put_resize_block(self, block: int) -> None:
        pointers = [0] * POINTERS_PER_BLOCK
        for position in self._reserved:
            pointers[(position - 1) % POINTERS_PER_BLOCK] = position
        self._put(_pointers(pointers), block)

    def _journal_inode(self, tree: ExtentTree) -> Inode:
        blocks = self.plan.geometry.journal_blocks
        return self._hidden_inode(
            mode=S_IFREG | 0o600,
            links=1,
            size=blocks * BLOCK_SIZE,
            sectors=(blocks + len(tree.node_blocks)) * SECTORS_PER_BLOCK,
            flags=InodeFlag.EXTENTS,
            block=self._extents(JOURNAL, tree)[0],
        )

    def _resize_inode(self, block: int) -> Inode:
        geometry = self.plan.geometry
        pointers = [0] * 15
        pointers[DOUBLY_INDIRECT] = block
        used = 1 + geometry.reserved_blocks * len(geometry.copy_groups)
        largest = DIRECT_BLOCKS + POINTERS_PER_BLOCK + POINTERS_PER_BLOCK**2
        return self._hidden_inode(
            mode=S_IFREG | 0o600,
            links=1,
            size=largest * BLOCK_SIZE,
            sectors=used * SECTORS_PER_BLOCK,
            flags=0,
            block=struct.pack("<15I", *pointers),
        )

    def _hidden_inode(
        self, *, mode: int, links: int, size: int, sectors: int, flags: int, block: bytes
    ) -> Inode:
        """An inode that has no name."""
        time = pack_time(self.epoch * NANOSECONDS)
        return Inode(
            mode=mode,
            uid=0,
            size=size,
            atime=time,
            ctime=time,
            mtime=time,
            gid=0,
            links=links,
            sectors=sectors,
            flags=flags,
            block=block,
            file_acl=0,
            crtime=time,
        )


def _pointers(blocks: Sequence[int]) -> bytes:
    """A block of pointers to these blocks."""
    return struct.pack(f"<{len(blocks)}I", *blocks).ljust(BLOCK_SIZE, b"\0")


def _clear(bitmap: bytearray, begin: int, end: int) -> None:
    """Clear the bits from ``begin`` to ``end``."""
    first, last = -(-begin // 8), end // 8
    if first > last:
        bitmap[last] &= ~((1 << end % 8) - (1 << begin % 8)) & 0xFF
        return
    if begin % 8:
        bitmap[first - 1] &= (1 << begin % 8) - 1
    bitmap[first:last] = bytes(last - first)
    if end % 8:
        bitmap[last] &= ~((1 << end % 8) - 1) & 0xFF
