"""The on-disk structures of squashfs 4.0: which fields they have, and where.

The reference is fs/squashfs/squashfs_fs.h in the kernel's sources; doc/format.adoc of
squashfs-tools-ng describes the same. All numbers are little-endian. An image is::

    ┌────────────┬─────────┬──────┬────────┬─────────────┬───────────┬────────┬─────┬────────┐
    │ superblock │ options │ data │ inodes │ directories │ fragments │ export │ ids │ xattrs │
    └────────────┴─────────┴──────┴────────┴─────────────┴───────────┴────────┴─────┴────────┘

    options      how the compressor was set, if not as usual
    data         contents of files, cut into blocks of one size, and fragment blocks, in each of
                 which are the ends of several files
    inodes       one after another; the position of an inode is its reference
    directories  the listing of each directory; an entry refers to an inode
    fragments    where each fragment block is
    export       the reference of each inode, by number
    ids          all users and groups; inodes have the place of an ID in this list
    xattrs       extended attributes

Zeros fill an image up to a multiple of 4096 bytes. Everything behind the data is metadata: a stream
that is cut into pieces of 8 KiB, each of them compressed and behind its size::

    ┌──────┬───────────────┬──────┬───────────────┬─
    │ size │ 8 KiB, packed │ size │ 8 KiB, packed │ ...
    └──────┴───────────────┴──────┴───────────────┴─

A reference has the position of such a piece, counted from where the table begins, times 65536, plus
an offset in the unpacked piece. Fragments, export and ids are lookup tables: records of one size
in such pieces, and behind them an index with the position of each piece. The superblock has the
position of the index. A table that is missing has the position `NONE`.
"""

# No "from __future__ import annotations" here: `Layout` evaluates all of these when it is loaded.

import stat
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Annotated, NamedTuple

from fledge.disks.squashfs.constants import SUPERBLOCK_SIZE
from fledge.tree.binary import Layout, u16, u32, u64

NONE = 0xFFFFFFFFFFFFFFFF
"""The position of a table that is missing."""
NO_FRAGMENT = NO_XATTRS = 0xFFFFFFFF
"""The number that stands for no fragment, or no extended attributes, in an inode."""

MIN_BLOCK_SIZE, MAX_BLOCK_SIZE = 1 << 12, 1 << 20
"""The bounds of the size of a data block, in bytes."""
METADATA_SIZE = 8192
"""Bytes in an unpacked piece of metadata; the last one of a table may have fewer."""
METADATA_PLAIN = 1 << 15
"""The flag in the size of a piece of metadata that is not compressed."""
DATA_PLAIN = 1 << 24
"""The flag in the size of a data block that is not compressed. The size 0 is a block of zeros."""
PADDING = 4096
"""An image is filled up to a multiple of this many bytes."""

MAX_IDS = (1 << 16) - 1
"""How many users and groups an image can have together: the superblock counts them in 16 bits."""
MAX_SECONDS = (1 << 32) - 1
"""The latest time, in seconds since 1970."""
MAX_NAME = 256
"""Maximum bytes in the name of an entry. Linux takes only 255."""
MAX_RUN = 256
"""Maximum entries behind one header of a directory's listing."""
EMPTY_LISTING = 3
"""Bytes that the size of a listing has too many: Linux counts the entries . and .. as 3 bytes."""


class Codec(IntEnum):
    """The number of a compressor."""

    GZIP = 1
    LZMA = 2
    LZO = 3
    XZ = 4
    LZ4 = 5
    ZSTD = 6


class Flag(IntFlag):
    """How the image was made. Linux only looks whether `OPTIONS` is set."""

    PLAIN_INODES = 0x1
    PLAIN_DATA = 0x2
    CHECK = 0x4
    PLAIN_FRAGMENTS = 0x8
    NO_FRAGMENTS = 0x10
    ALWAYS_FRAGMENTS = 0x20
    DUPLICATES = 0x40
    EXPORT = 0x80
    PLAIN_XATTRS = 0x100
    NO_XATTRS = 0x200
    OPTIONS = 0x400
    PLAIN_IDS = 0x800


class Superblock(NamedTuple):
    """struct squashfs_super_block."""

    magic: Annotated[int, u32(0x0)]
    inodes: Annotated[int, u32(0x4)]
    mkfs_time: Annotated[int, u32(0x8)]
    """Seconds since 1970."""
    block_size: Annotated[int, u32(0xC)]
    fragments: Annotated[int, u32(0x10)]
    compression: Annotated[int, u16(0x14)]
    """A `Codec`."""
    block_log: Annotated[int, u16(0x16)]
    """The block size as a power of 2."""
    flags: Annotated[int, u16(0x18)]
    ids: Annotated[int, u16(0x1A)]
    major: Annotated[int, u16(0x1C)]
    minor: Annotated[int, u16(0x1E)]
    root_inode: Annotated[int, u64(0x20)]
    """A reference."""
    bytes_used: Annotated[int, u64(0x28)]
    """The size of the image without the zeros at its end."""
    id_table: Annotated[int, u64(0x30)]
    xattr_table: Annotated[int, u64(0x38)]
    inode_table: Annotated[int, u64(0x40)]
    directory_table: Annotated[int, u64(0x48)]
    fragment_table: Annotated[int, u64(0x50)]
    export_table: Annotated[int, u64(0x58)]


class GzipOptions(NamedTuple):
    """How zlib was set, in a piece of metadata behind the superblock."""

    level: Annotated[int, u32(0x0)]
    window: Annotated[int, u16(0x4)]
    """The size of the window as a power of 2."""
    strategies: Annotated[int, u16(0x6)]


class ZstdOptions(NamedTuple):
    """How zstd was set."""

    level: Annotated[int, u32(0x0)]


class InodeType(IntEnum):
    """The type of an inode. An extended one is `EXTENDED` more."""

    DIRECTORY = 1
    FILE = 2
    SYMLINK = 3
    BLOCK_DEVICE = 4
    CHAR_DEVICE = 5
    FIFO = 6
    SOCKET = 7


FILE_TYPES = {
    InodeType.DIRECTORY: stat.S_IFDIR,
    InodeType.FILE: stat.S_IFREG,
    InodeType.SYMLINK: stat.S_IFLNK,
    InodeType.BLOCK_DEVICE: stat.S_IFBLK,
    InodeType.CHAR_DEVICE: stat.S_IFCHR,
    InodeType.FIFO: stat.S_IFIFO,
    InodeType.SOCKET: stat.S_IFSOCK,
}
"""The S_IFMT bits of each type (inode(7))."""
INODE_TYPES = {file_type: inode_type for inode_type, file_type in FILE_TYPES.items()}

EXTENDED = 7


class InodeHeader(NamedTuple):
    """struct squashfs_base_inode, with which every inode begins."""

    type: Annotated[int, u16(0x0)]
    mode: Annotated[int, u16(0x2)]
    """Permissions, without the type."""
    uid: Annotated[int, u16(0x4)]
    """The place in the list of IDs."""
    gid: Annotated[int, u16(0x6)]
    mtime: Annotated[int, u32(0x8)]
    """Seconds since 1970."""
    number: Annotated[int, u32(0xC)]
    """From 1 on."""


class DirectoryInode(NamedTuple):
    """What follows the header in struct squashfs_dir_inode."""

    start: Annotated[int, u32(0x0)]
    """The position of the piece of metadata in which the listing begins."""
    links: Annotated[int, u32(0x4)]
    size: Annotated[int, u16(0x8)]
    """Bytes in the listing, and `EMPTY_LISTING`."""
    offset: Annotated[int, u16(0xA)]
    """Where the listing begins in that piece."""
    parent: Annotated[int, u32(0xC)]
    """The number of an inode; of the root, one that no inode has."""


class LargeDirectoryInode(NamedTuple):
    """What follows the header in struct squashfs_ldir_inode, before the index."""

    links: Annotated[int, u32(0x0)]
    size: Annotated[int, u32(0x4)]
    start: Annotated[int, u32(0x8)]
    parent: Annotated[int, u32(0xC)]
    indexes: Annotated[int, u16(0x10)]
    """How many `IndexEntry` follow."""
    offset: Annotated[int, u16(0x12)]
    xattr: Annotated[int, u32(0x14)]


class IndexEntry(NamedTuple):
    """struct squashfs_dir_index, before the name of the first entry there."""

    distance: Annotated[int, u32(0x0)]
    """Where a header is in the listing, in bytes."""
    start: Annotated[int, u32(0x4)]
    """The position of the piece of metadata in which that header begins."""
    name_size: Annotated[int, u32(0x8)]
    """Bytes in the name, less one."""


class FileInode(NamedTuple):
    """What follows the header in struct squashfs_reg_inode, before the sizes of blocks."""

    start: Annotated[int, u32(0x0)]
    """The position of the first block in the image. The others follow it without a gap."""
    fragment: Annotated[int, u32(0x4)]
    """The number of the fragment block with the end of the file, or `NO_FRAGMENT`."""
    offset: Annotated[int, u32(0x8)]
    """Where the end of the file begins in the unpacked fragment block."""
    size: Annotated[int, u32(0xC)]


class LargeFileInode(NamedTuple):
    """What follows the header in struct squashfs_lreg_inode, before the sizes of blocks."""

    start: Annotated[int, u64(0x0)]
    size: Annotated[int, u64(0x8)]
    sparse: Annotated[int, u64(0x10)]
    """Bytes in blocks of zeros."""
    links: Annotated[int, u32(0x18)]
    fragment: Annotated[int, u32(0x1C)]
    offset: Annotated[int, u32(0x20)]
    xattr: Annotated[int, u32(0x24)]


class SymlinkInode(NamedTuple):
    """What follows the header in struct squashfs_symlink_inode, before the target.

    In an extended inode, an `XattrNumber` follows the target.
    """

    links: Annotated[int, u32(0x0)]
    size: Annotated[int, u32(0x4)]
    """Bytes in the target."""


class DeviceInode(NamedTuple):
    """What follows the header in struct squashfs_dev_inode; then the same as of a symlink."""

    links: Annotated[int, u32(0x0)]
    device: Annotated[int, u32(0x4)]
    """Major and minor number; see `pack_device`."""


class IpcInode(NamedTuple):
    """What follows the header in struct squashfs_ipc_inode, of a fifo or a socket."""

    links: Annotated[int, u32(0x0)]


class XattrNumber(NamedTuple):
    """The last field of an extended symlink, device or fifo."""

    xattr: Annotated[int, u32(0x0)]
    """The place in the table of extended attributes, or `NO_XATTRS`."""


class DirectoryHeader(NamedTuple):
    """struct squashfs_dir_header, before a run of entries whose inodes begin in one piece."""

    entries: Annotated[int, u32(0x0)]
    """How many follow, less one."""
    start: Annotated[int, u32(0x4)]
    """The position of the piece of metadata in which the inodes begin."""
    number: Annotated[int, u32(0x8)]
    """The number of an inode from which those of the entries are counted."""


class DirectoryEntry(NamedTuple):
    """struct squashfs_dir_entry, before the name."""

    offset: Annotated[int, u16(0x0)]
    """Where the inode begins in its piece."""
    delta: Annotated[int, u16(0x2)]
    """What to add to the number in the header, as a signed number of 16 bits."""
    type: Annotated[int, u16(0x4)]
    """An `InodeType`, of an extended inode too."""
    name_size: Annotated[int, u16(0x6)]
    """Bytes in the name, less one."""


class FragmentEntry(NamedTuple):
    """struct squashfs_fragment_entry."""

    start: Annotated[int, u64(0x0)]
    size: Annotated[int, u32(0x8)]
    """As of a data block."""


class XattrHeader(NamedTuple):
    """struct squashfs_xattr_id_table, before the index of the table of extended attributes."""

    start: Annotated[int, u64(0x0)]
    """The position of the first piece of names and values."""
    entries: Annotated[int, u32(0x8)]


class XattrEntry(NamedTuple):
    """struct squashfs_xattr_id: the extended attributes of one or more inodes."""

    reference: Annotated[int, u64(0x0)]
    """Where the first name is, counted from `XattrHeader.start`."""
    attributes: Annotated[int, u32(0x8)]
    size: Annotated[int, u32(0xC)]
    """Bytes in the full names, each with a NUL, and in the values. Linux does not look at it."""


class XattrName(NamedTuple):
    """struct squashfs_xattr_entry, before the name without its prefix."""

    type: Annotated[int, u16(0x0)]
    """A prefix, and `VALUE_ELSEWHERE`."""
    size: Annotated[int, u16(0x2)]


class XattrValue(NamedTuple):
    """struct squashfs_xattr_val, before the value, which follows its name.

    With `VALUE_ELSEWHERE`, the value is 8 bytes: a reference to another such structure.
    """

    size: Annotated[int, u32(0x0)]


SUPERBLOCK = Layout(Superblock, size=SUPERBLOCK_SIZE)
GZIP_OPTIONS = Layout(GzipOptions, size=8)
ZSTD_OPTIONS = Layout(ZstdOptions, size=4)
INODE_HEADER = Layout(InodeHeader, size=16)
DIRECTORY_INODE = Layout(DirectoryInode, size=16)
LARGE_DIRECTORY_INODE = Layout(LargeDirectoryInode, size=24)
INDEX_ENTRY = Layout(IndexEntry, size=12)
FILE_INODE = Layout(FileInode, size=16)
LARGE_FILE_INODE = Layout(LargeFileInode, size=40)
SYMLINK_INODE = Layout(SymlinkInode, size=8)
DEVICE_INODE = Layout(DeviceInode, size=8)
IPC_INODE = Layout(IpcInode, size=4)
XATTR_NUMBER = Layout(XattrNumber, size=4)
DIRECTORY_HEADER = Layout(DirectoryHeader, size=12)
DIRECTORY_ENTRY = Layout(DirectoryEntry, size=8)
FRAGMENT_ENTRY = Layout(FragmentEntry, size=16)
XATTR_HEADER = Layout(XattrHeader, size=16)
XATTR_ENTRY = Layout(XattrEntry, size=16)
XATTR_NAME = Layout(XattrName, size=4)
XATTR_VALUE = Layout(XattrValue, size=4)
METADATA_HEADER = Struct("<H")
"""The size of a piece of metadata as stored, and `METADATA_PLAIN`."""
REFERENCE = Struct("<Q")
ID = Struct("<I")

XATTR_PREFIXES = (b"user.", b"trusted.", b"security.")
"""What names of extended attributes begin with, by type. There is no other."""
VALUE_ELSEWHERE = 0x100
