"""Writes a planned filesystem, front to back."""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from operator import itemgetter
from pathlib import Path
from stat import S_IFREG

from fledge.ext4 import directory, structures, xattr
from fledge.ext4.copy import Copier
from fledge.ext4.directory import FILE_TYPES, Entry
from fledge.ext4.plan import GROUPS_PER_FLEX, MAX_LINKS, POINTERS_PER_BLOCK, Place, Plan, run_before
from fledge.ext4.structures import (
    BLOCK_SIZE,
    BLOCKS_PER_GROUP,
    DIRECT_BLOCKS,
    INODE_BLOCK_SIZE,
    JOURNAL,
    LOST_AND_FOUND,
    RESIZE,
    SECTOR_SIZE,
    SUPERBLOCK_OFFSET,
    GroupDescriptor,
    Inode,
    InodeFlag,
    Superblock,
    checksum,
    filesystem_seed,
    inode_seed,
    pack_device,
    pack_extents,
    pack_journal,
)
from fledge.host.output import Digest, Output
from fledge.tree import NANOSECONDS, Device, Directory, File, Node, Symlink

SECTORS_PER_BLOCK = BLOCK_SIZE // SECTOR_SIZE
DOUBLY_INDIRECT = 13
"""Which of an inode's 15 pointers leads to a block of pointers to blocks of pointers."""


def write(plan: Plan, path: Path, epoch: int, digest: Digest | None = None) -> None:
    """Make the file at ``path`` what is planned; ``digest`` gets all of it.

    Raises `FledgeError` if a content cannot be read, `OSError` if the disk refuses.
    """
    with path.open("r+b", buffering=0) as file:
        # Truncating an empty file would make closing it wait for the disk.
        if file.seek(0, os.SEEK_END):
            file.truncate(0)
        output = Output(file.fileno(), digest)
        with closing(output), closing(Copier(output)) as copier:
            _Writer(plan, output, copier, epoch).write()
            output.finish(plan.geometry.blocks * BLOCK_SIZE)


_Job = tuple[int, Callable[[], None]]
"""What is to be written, and the first block that it goes to."""


class _Writer:
    def __init__(self, plan: Plan, output: Output, copier: Copier, epoch: int) -> None:
        self.plan = plan
        self.output = output
        self.copier = copier
        self.epoch = epoch
        self.seed = filesystem_seed(plan.uuid)
        self.nodes: list[Node | None] = [None] * (plan.last_inode + 1)
        """By their inode's number."""
        for node, place in plan.places.items():
            self.nodes[place.number] = node
        per_group = plan.geometry.inodes_per_group
        self.directories = Counter(
            (number - 1) // per_group
            for number, node in enumerate(self.nodes)
            if isinstance(node, Directory)
        )
        """How many each group has."""

    def write(self) -> None:
        """Everything, in the order of where it goes."""
        plan = self.plan
        divided = plan.geometry
        descriptors = b"".join(map(self._descriptor, range(divided.groups)))
        jobs: list[_Job] = []
        for number in divided.copies:
            jobs.append((number * BLOCKS_PER_GROUP, partial(self._put_copy, number, descriptors)))
        for number, group in enumerate(plan.groups):
            jobs.append((group.block_bitmap, partial(self._put_block_bitmap, number)))
            jobs.append((group.inode_bitmap, partial(self._put_inode_bitmap, number)))
            jobs.append((group.inode_table, partial(self._put_inode_table, number)))
        jobs.extend(self._tree_jobs(plan.journal))
        jobs.append((plan.journal.extents[0].physical, self._put_journal))
        jobs.append((plan.resize_block, self._put_resize_block))
        for node, place in plan.places.items():
            if place.blocks:
                jobs.extend(self._node_jobs(node, place))
        jobs.sort(key=itemgetter(0))
        for _, job in jobs:
            job()

    def _node_jobs(self, node: Node, place: Place) -> Iterator[_Job]:
        if place.has_xattr_block:
            yield place.xattr_block, partial(self._put_xattrs, node, place.xattr_block)
        if place.tree_blocks:
            yield from self._tree_jobs(place)
        if isinstance(node, File):
            for extent in place.extents:
                yield extent.physical, partial(self.copier.copy, node, extent)
        elif isinstance(node, Directory):
            blocks = self._directory(node, place)
            for extent in place.extents:
                job = partial(self._put_blocks, blocks, extent.length, extent.physical)
                yield extent.physical, job
        elif isinstance(node, Symlink) and place.extents:
            first = place.extents[0].physical
            yield first, partial(self._put, node.target, first)

    def _tree_jobs(self, place: Place) -> Iterator[_Job]:
        blocks = self._tree_blocks(place)
        for position in place.tree_blocks:
            yield position, partial(self._put_blocks, blocks, 1, position)

    def _put(self, data: bytes, block: int) -> None:
        self.output.write(data, block * BLOCK_SIZE)

    def _put_copy(self, group: int, descriptors: bytes) -> None:
        """A superblock, and what follows it."""
        block = group * BLOCKS_PER_GROUP
        superblock = self._superblock(group).pack()
        self.output.write(superblock, block * BLOCK_SIZE + (0 if group else SUPERBLOCK_OFFSET))
        self._put(descriptors, block + 1)
        if group == 0:
            others = self.plan.geometry.copies[1:]
            for position in self._reserved:
                copies = [other * BLOCKS_PER_GROUP + position for other in others]
                self._put(_pointers(copies), position)

    @property
    def _reserved(self) -> range:
        """The blocks that are reserved for descriptors, in the first group."""
        first = 1 + self.plan.geometry.descriptor_blocks
        return range(first, first + self.plan.geometry.reserved_blocks)

    def _superblock(self, group: int) -> Superblock:
        divided = self.plan.geometry
        return Superblock(
            inodes_count=divided.inodes,
            blocks_count=divided.blocks,
            reserved_blocks_count=0,
            free_blocks_count=sum(length for _, length in self.plan.free),
            free_inodes_count=divided.inodes - self._last_inode,
            first_data_block=0,
            log_block_size=structures.LOG_BLOCK_SIZE,
            log_cluster_size=structures.LOG_BLOCK_SIZE,
            blocks_per_group=BLOCKS_PER_GROUP,
            clusters_per_group=BLOCKS_PER_GROUP,
            inodes_per_group=divided.inodes_per_group,
            mtime=0,
            wtime=self.epoch,
            mnt_count=0,
            max_mnt_count=structures.NEVER,
            magic=structures.MAGIC,
            state=structures.CLEAN,
            errors=structures.CONTINUE_ON_ERRORS,
            lastcheck=self.epoch,
            rev_level=structures.DYNAMIC_REVISION,
            first_ino=LOST_AND_FOUND,
            inode_size=structures.INODE_SIZE,
            block_group_nr=group & 0xFFFF,  # as mke2fs truncates it
            feature_compat=structures.COMPAT,
            feature_incompat=structures.INCOMPAT,
            feature_ro_compat=structures.RO_COMPAT,
            uuid=self.plan.uuid,
            volume_name=b"",
            last_mounted=b"",
            reserved_gdt_blocks=divided.reserved_blocks,
            journal_inum=JOURNAL,
            last_orphan=0,
            hash_seed=self.plan.hash_seed,
            def_hash_version=structures.HALF_MD4,
            jnl_backup_type=structures.JOURNAL_BACKUP,
            desc_size=structures.DESCRIPTOR_SIZE,
            default_mount_opts=structures.XATTRS_AND_ACLS,
            first_meta_bg=0,
            mkfs_time=self.epoch,
            jnl_blocks=self._journal_backup(),
            min_extra_isize=structures.EXTRA_ISIZE,
            want_extra_isize=structures.EXTRA_ISIZE,
            flags=structures.UNSIGNED_HASH,
            log_groups_per_flex=GROUPS_PER_FLEX.bit_length() - 1,
            checksum_type=structures.CRC32C,
            kbytes_written=0,
            overhead_clusters=divided.overhead,
            checksum_seed=0,
        )

    def _descriptor(self, group: int) -> bytes:
        place = self.plan.groups[group]
        per_group = self.plan.geometry.inodes_per_group
        block_bitmap, inode_bitmap = self._block_bitmap(group), self._inode_bitmap(group)
        unused = per_group - self._used_inodes(group)
        return GroupDescriptor(
            block_bitmap=place.block_bitmap,
            inode_bitmap=place.inode_bitmap,
            inode_table=place.inode_table,
            free_blocks_count=sum(end - start for start, end in self._free_in(group)),
            free_inodes_count=unused,
            used_dirs_count=self.directories[group],
            flags=structures.ZEROED,
            block_bitmap_csum=checksum(self.seed, block_bitmap),
            inode_bitmap_csum=checksum(self.seed, inode_bitmap[: per_group // 8]),
            itable_unused=unused,
        ).pack(group, self.seed)

    def _free_in(self, group: int) -> Iterator[tuple[int, int]]:
        """Begin and end of what is free, as blocks of the group."""
        first = group * BLOCKS_PER_GROUP
        free = self.plan.free
        for start, length in islice(free, run_before(free, first), None):
            begin, end = max(start - first, 0), min(start + length - first, BLOCKS_PER_GROUP)
            if begin >= BLOCKS_PER_GROUP:
                break
            if begin < end:
                yield begin, end

    def _used_inodes(self, group: int) -> int:
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
        elif number == JOURNAL:
            inode = self._journal_inode()
        elif number == RESIZE:
            inode = self._resize_inode()
        else:
            return bytes(structures.INODE_SIZE)
        return inode.pack(number, self.seed)

    def _node_inode(self, node: Node) -> Inode:
        place = self.plan.places[node]
        mode, flags, links = node.mode, 0, self.plan.links[node]
        if place.runs or isinstance(node, File):
            flags = InodeFlag.EXTENTS
            block, _ = self._extents(place)
        elif isinstance(node, Symlink):
            block = node.target.ljust(INODE_BLOCK_SIZE, b"\0")
        elif isinstance(node, Device):
            block = pack_device(node.major, node.minor)
        else:
            block = bytes(INODE_BLOCK_SIZE)
        if isinstance(node, Symlink):
            mode = 0o777
        elif isinstance(node, Directory):
            # With dir_nlink one stands for more than can be counted.
            links = node.links if node.links <= MAX_LINKS else 1
            if node in self.plan.indexes:
                flags |= InodeFlag.INDEX
        sectors = place.blocks * SECTORS_PER_BLOCK
        xattrs = xattr.pack(node.xattrs).inode if node.xattrs else b""
        mode, time, acl = node.file_type | mode, node.mtime_ns, place.xattr_block
        times = time, time, time, time
        # By position, for so many names would cost a tenth of what an inode does.
        return Inode(
            mode, node.uid, node.gid, place.size, links, sectors, flags, block, acl, *times, xattrs
        )

    def _extents(self, place: Place) -> tuple[bytes, list[bytes]]:
        seed = inode_seed(self.seed, place.number) if place.tree_blocks else 0
        return pack_extents(place.extents, place.tree_blocks, seed)

    def _tree_blocks(self, place: Place) -> Iterator[bytes]:
        yield from self._extents(place)[1]

    def _put_xattrs(self, node: Node, position: int) -> None:
        block = xattr.pack(node.xattrs).block
        self._put(xattr.with_checksum(block, position, self.seed), position)

    def _put_blocks(self, blocks: Iterator[bytes], count: int, position: int) -> None:
        """Put the next ``count`` blocks there: the parts of one thing are in ascending order."""
        self._put(b"".join(islice(blocks, count)), position)

    def _directory(self, node: Directory, place: Place) -> Iterator[bytes]:
        places = self.plan.places
        entries = {
            name: Entry(name, places[child].number, FILE_TYPES[child.file_type])
            for name, child in node.children.items()
        }
        parent = places[self.plan.parents[node]].number
        seed = inode_seed(self.seed, place.number)
        if leaves := self.plan.indexes.get(node):
            yield from directory.tree_blocks(place.number, parent, leaves, entries, seed)
            return
        yield directory.linear_block(
            place.number, parent, [entries[name] for name in sorted(entries)], seed
        )
        for _ in range(place.size // BLOCK_SIZE - 1):
            yield directory.empty_block(seed)

    def _put_journal(self) -> None:
        place = self.plan.journal
        self._put(pack_journal(place.size // BLOCK_SIZE, self.plan.uuid), place.extents[0].physical)

    def _put_resize_block(self) -> None:
        pointers = [0] * POINTERS_PER_BLOCK
        for position in self._reserved:
            pointers[(position - 1) % POINTERS_PER_BLOCK] = position
        self._put(_pointers(pointers), self.plan.resize_block)

    def _journal_inode(self) -> Inode:
        place = self.plan.journal
        return self._hidden_inode(
            mode=S_IFREG | 0o600,
            links=1,
            size=place.size,
            sectors=place.blocks * SECTORS_PER_BLOCK,
            flags=InodeFlag.EXTENTS,
            block=self._extents(place)[0],
        )

    def _journal_backup(self) -> bytes:
        inode = self._journal_inode()
        return inode.block + struct.pack("<II", inode.size >> 32, inode.size & 0xFFFFFFFF)

    def _resize_inode(self) -> Inode:
        divided = self.plan.geometry
        pointers = [0] * 15
        pointers[DOUBLY_INDIRECT] = self.plan.resize_block
        used = 1 + divided.reserved_blocks * len(divided.copies)
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
        """An inode of the filesystem's own."""
        time = self.epoch * NANOSECONDS
        return Inode(mode, 0, 0, size, links, sectors, flags, block, 0, time, time, time, time)


def _pointers(blocks: Sequence[int]) -> bytes:
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
