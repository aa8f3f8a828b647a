"""Writes a planned filesystem from its first block to its last."""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from operator import itemgetter
from stat import S_IFREG
from typing import BinaryIO

from fledge.ext4 import directory, structures, xattr
from fledge.ext4.constants import MAGIC, SUPERBLOCK_OFFSET
from fledge.ext4.directory import FILE_TYPES
from fledge.ext4.plan import (
    GROUPS_PER_FLEX,
    MAX_LINKS,
    POINTERS_PER_BLOCK,
    Allocation,
    Plan,
    run_before,
)
from fledge.ext4.structures import (
    BLOCK_SIZE,
    BLOCKS_PER_GROUP,
    DIRECT_BLOCKS,
    INODE_BLOCK_SIZE,
    JOURNAL,
    LOST_AND_FOUND,
    RESIZE,
    SECTOR_SIZE,
    Extent,
    GroupDescriptor,
    Inode,
    InodeFlag,
    RoCompat,
    Superblock,
    checksum,
    inode_seed,
    pack_device,
    pack_extents,
    pack_journal,
    pack_time,
)
from fledge.host.copier import Copier
from fledge.host.output import Hasher, Output
from fledge.report import Transfer
from fledge.tree import NANOSECONDS, Device, Directory, File, Node, Symlink
from fledge.tree.content import content_size

SECTORS_PER_BLOCK = BLOCK_SIZE // SECTOR_SIZE
DOUBLY_INDIRECT = 13
"""The index of the pointer, in an inode without extents, to a block of pointers to blocks of
pointers."""


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
        self.nodes: list[Node | None] = [None] * (plan.last_inode + 1)
        """By the number of their inode. None: reserved, or the filesystem's own."""
        for node, allocation in plan.allocations.items():
            self.nodes[allocation.number] = node
        per_group = plan.geometry.inodes_per_group
        self.directories = Counter(
            (number - 1) // per_group
            for number, node in enumerate(self.nodes)
            if isinstance(node, Directory)
        )
        """How many directories each group has."""

    def write(self) -> None:
        """Write everything in the order of its position."""
        plan = self.plan
        geometry = plan.geometry
        descriptors = b"".join(map(self._descriptor, range(geometry.groups)))
        jobs: list[_Job] = []
        for number in geometry.copy_groups:
            jobs.append((number * BLOCKS_PER_GROUP, partial(self._put_copy, number, descriptors)))
        for number, group in enumerate(plan.groups):
            jobs.append((group.block_bitmap, partial(self._put_block_bitmap, number)))
            jobs.append((group.inode_bitmap, partial(self._put_inode_bitmap, number)))
            jobs.append((group.inode_table, partial(self._put_inode_table, number)))
        if plan.journal and plan.resize_block:
            jobs.extend(self._extent_tree_jobs(plan.journal))
            jobs.append(
                (plan.journal.extents[0].physical, partial(self._put_journal, plan.journal))
            )
            jobs.append((plan.resize_block, partial(self._put_resize_block, plan.resize_block)))
        for node, allocation in plan.allocations.items():
            if allocation.extents or allocation.has_xattr_block:
                jobs.extend(self._node_jobs(node, allocation))
        jobs.sort(key=itemgetter(0))
        for _, job in jobs:
            job()

    def _node_jobs(self, node: Node, allocation: Allocation) -> Iterator[_Job]:
        """Everything that a node has outside of the inode table."""
        if allocation.has_xattr_block:
            yield allocation.xattr_block, partial(self._put_xattrs, node, allocation.xattr_block)
        if allocation.node_blocks:
            yield from self._extent_tree_jobs(allocation)
        if isinstance(node, File):
            for extent in allocation.extents:
                yield extent.physical, partial(self._copy, node, extent)
        elif isinstance(node, Directory):
            blocks = self._directory(node, allocation)
            for extent in allocation.extents:
                job = partial(self._put_blocks, blocks, extent.length, extent.physical)
                yield extent.physical, job
        elif isinstance(node, Symlink) and allocation.extents:
            first = allocation.extents[0].physical
            yield first, partial(self._put, node.target, first)

    def _extent_tree_jobs(self, allocation: Allocation) -> Iterator[_Job]:
        blocks = self._extent_tree_blocks(allocation)
        for position in allocation.node_blocks:
            yield position, partial(self._put_blocks, blocks, 1, position)

    def _copy(self, file: File, extent: Extent) -> None:
        offset = extent.logical * BLOCK_SIZE
        length = min(extent.length * BLOCK_SIZE, content_size(file.content) - offset)
        self.copier.copy(file, offset, length, extent.physical * BLOCK_SIZE)

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
            size = struct.pack("<II", *divmod(journal.size, 1 << 32))
            backup = self._extents(journal)[0] + size
        read_only = RoCompat.READONLY if geometry.read_only else 0
        return Superblock(
            inodes_count=geometry.inodes,
            blocks_count=geometry.blocks,
            reserved_blocks_count=0,
            free_blocks_count=sum(run.length for run in self.plan.free),
            free_inodes_count=geometry.inodes - self._last_inode,
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
        return min(max(self._last_inode - group * per_group, 0), per_group)

    @property
    def _last_inode(self) -> int:
        return len(self.nodes) - 1

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
        first = group * self.plan.geometry.inodes_per_group + 1
        table = b"".join(
            self._inode(number) for number in range(first, first + self._used_inodes(group))
        )
        self._put(table, self.plan.groups[group].inode_table)

    def _inode(self, number: int) -> bytes:
        if node := self.nodes[number]:
            inode = self._node_inode(node)
        elif number == JOURNAL and self.plan.journal:
            inode = self._journal_inode(self.plan.journal)
        elif number == RESIZE and self.plan.resize_block:
            inode = self._resize_inode(self.plan.resize_block)
        else:
            return bytes(structures.INODE_SIZE)
        return inode.pack(number, self.seed)

    def _node_inode(self, node: Node) -> Inode:
        allocation = self.plan.allocations[node]
        mode, flags, links = node.mode, 0, self.plan.links[node]
        if allocation.runs or isinstance(node, File):
            flags = InodeFlag.EXTENTS
            block, _ = self._extents(allocation)
        elif isinstance(node, Symlink):
            block = node.target.ljust(INODE_BLOCK_SIZE, b"\0")
        elif isinstance(node, Device):
            block = pack_device(node.major, node.minor)
        else:
            block = bytes(INODE_BLOCK_SIZE)
        if isinstance(node, Symlink):
            mode = 0o777
        elif isinstance(node, Directory):
            # With dir_nlink, 1 stands for more links than can be counted.
            links = node.links if node.links <= MAX_LINKS else 1
            if node in self.plan.hash_trees:
                flags |= InodeFlag.INDEX
        sectors = allocation.blocks * SECTORS_PER_BLOCK
        xattrs = xattr.pack(node.xattrs).inode if node.xattrs else b""
        time = pack_time(node.mtime_ns)
        return Inode(
            mode=node.file_type | mode,
            uid=node.uid,
            size=allocation.size,
            atime=time,
            ctime=time,
            mtime=time,
            gid=node.gid,
            links=links,
            sectors=sectors,
            flags=flags,
            block=block,
            file_acl=allocation.xattr_block,
            crtime=time,
            xattrs=xattrs,
        )

    def _extents(self, allocation: Allocation) -> tuple[bytes, list[bytes]]:
        seed = inode_seed(self.seed, allocation.number) if allocation.node_blocks else 0
        return pack_extents(allocation.extents, allocation.node_blocks, seed)

    def _extent_tree_blocks(self, allocation: Allocation) -> Iterator[bytes]:
        yield from self._extents(allocation)[1]

    def _put_xattrs(self, node: Node, position: int) -> None:
        block = xattr.pack(node.xattrs).block
        self._put(xattr.with_checksum(block, position, self.seed), position)

    def _put_blocks(self, blocks: Iterator[bytes], count: int, position: int) -> None:
        """Write the next ``count`` blocks from ``position`` on; those of one file come in order."""
        self._put(b"".join(islice(blocks, count)), position)

    def _directory(self, node: Directory, allocation: Allocation) -> Iterator[bytes]:
        allocations = self.plan.allocations
        entries = {
            name: directory.entry(name, allocations[child].number, FILE_TYPES[child.file_type])
            for name, child in node.children.items()
        }
        parent = allocations[self.plan.parents[node]].number
        seed = inode_seed(self.seed, allocation.number)
        if leaves := self.plan.hash_trees.get(node):
            yield from directory.tree_blocks(allocation.number, parent, leaves, entries, seed)
            return
        yield directory.linear_block(allocation.number, parent, sorted(entries.items()), seed)
        for _ in range(allocation.size // BLOCK_SIZE - 1):
            yield directory.empty_block(seed)

    def _put_journal(self, allocation: Allocation) -> None:
        self._put(
            pack_journal(allocation.size // BLOCK_SIZE, self.plan.uuid),
            allocation.extents[0].physical,
        )

    def _put_resize_block(self, block: int) -> None:
        pointers = [0] * POINTERS_PER_BLOCK
        for position in self._reserved:
            pointers[(position - 1) % POINTERS_PER_BLOCK] = position
        self._put(_pointers(pointers), block)

    def _journal_inode(self, allocation: Allocation) -> Inode:
        return self._hidden_inode(
            mode=S_IFREG | 0o600,
            links=1,
            size=allocation.size,
            sectors=allocation.blocks * SECTORS_PER_BLOCK,
            flags=InodeFlag.EXTENTS,
            block=self._extents(allocation)[0],
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
