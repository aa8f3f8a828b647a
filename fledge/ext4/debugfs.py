"""Sets the parts of a tree that a user without privileges cannot stage, with debugfs(8).

Its script names inodes by number. mke2fs walks the staged tree depth first in sorted order, as
`Tree.walk` does, and takes the lowest free inode each time. The script spells out names only of
entries that are not staged and of extended attributes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

from fledge.errors import CorruptError, FledgeError
from fledge.ext4 import xattr
from fledge.ext4.constants import LOST_AND_FOUND_PATH, SUPERBLOCK_OFFSET
from fledge.ext4.inodes import MAX_LINKS
from fledge.ext4.structures import (
    BLOCK_SIZE,
    LOST_AND_FOUND,
    ROOT,
    SUPERBLOCK_SIZE,
    Superblock,
    pack_time,
)
from fledge.host import programs
from fledge.host.files import NewFile
from fledge.host.settings import Settings
from fledge.host.work import PrivateFolder
from fledge.tree import BlockDevice, Device, Directory, Node, Symlink, Tree
from fledge.tree.device_numbers import encode_device
from fledge.tree.names import printable

MAX_SUBDIRECTORIES = MAX_LINKS - 2

OVERRUN = 2039
"""Bytes of the paths at which mke2fs (1.47.0 at least) writes one byte behind its buffer of 2040
bytes: path_append in create_inode.c leaves no room for the slash. At other lengths the allocator
rounds the buffer up."""

LINE_BREAK = re.compile(rb"[\r\n]")
"""Bytes at which a line of a debugfs script ends, even between quotes."""


def clock(epoch: int) -> dict[str, str]:
    """The environment in which e2fsprogs take ``epoch``, in seconds since 1970, for the time."""
    return {"E2FSPROGS_FAKE_TIME": str(epoch), "SOURCE_DATE_EPOCH": str(epoch)}


def finish(tree: Tree, file: NewFile, work: PrivateFolder, epoch: int, settings: Settings) -> None:
    """Complete ``file``, which is ``image`` in ``work`` and which mke2fs has made.

    Raises `FledgeError` if debugfs fails at any of it.
    """
    inodes = _staged_inodes(tree)
    with file.open() as image:
        _check_numbering(image, max(inodes.values()))
    with work.create("script") as script:
        for command in _commands(tree, inodes, work):
            script.write(command + b"\n")
    output = programs.run(
        *("debugfs", "-w", "-f", "script", "image"),
        folder=work.descriptor,
        settings=settings,
        environment=clock(epoch),
    )
    # It continues after an error and exits with 0. The first line is its version.
    if errors := output.partition("\n")[2]:
        raise programs.failed("debugfs", errors)


def unstaged(tree: Tree) -> dict[bytes, Node]:
    """Nodes that debugfs adds, by path: devices, and symlinks under their second and later names.

    A user without privileges cannot make devices, and mke2fs copies symlinks with two names.
    """
    found: dict[bytes, Node] = {}
    seen: set[Node] = set()
    for path, node in tree.walk():
        if isinstance(node, Device) or (isinstance(node, Symlink) and node in seen):
            found[path] = node
        seen.add(node)
    return found


def check_fits(tree: Tree) -> None:
    """Raise `CorruptError`, with the path, if e2fsprogs cannot make a tree that fits into ext4.

    Whether it fits into ext4 is checked when it is planned.
    """
    added = unstaged(tree)
    for path, node in tree.walk():
        problem = _problem(path, node)
        if path in added and LINE_BREAK.search(path.rpartition(b"/")[2]):
            problem = "neither devices nor hard links to symlinks can have a line break in the name"
        if problem:
            raise CorruptError(
                f"/{printable(path)}: {problem}",
                'Leave out builder = "mkfs", or change it in the image.',
            )


def _problem(path: bytes, node: Node) -> str | None:
    if len(path) == OVERRUN:
        return f"mke2fs corrupts its memory at paths of exactly {OVERRUN} bytes"
    if isinstance(node, Directory):
        subdirectories = node.links - 2
        if subdirectories > MAX_SUBDIRECTORIES:
            return f"{subdirectories} directories in one; mke2fs puts {MAX_SUBDIRECTORIES} there"
    return _xattr_problem(node)


def _xattr_problem(node: Node) -> str | None:
    size = xattr.HEADER.size + xattr.END_SIZE
    for name, value in node.xattrs.items():
        suffix = name.partition(b".")[2]
        if LINE_BREAK.search(name):
            return f"ext4 has no place for the extended attribute {printable(name)}"
        size += xattr.ENTRY.size + len(suffix) + 3 + len(value) + 3
    if size > BLOCK_SIZE:
        return f"extended attributes of {size} bytes; ext4 has {BLOCK_SIZE} for them"
    return None


def _check_numbering(image: BinaryIO, last: int) -> None:
    """Raise `FledgeError` if mke2fs has not used exactly the inodes up to ``last``."""
    image.seek(SUPERBLOCK_OFFSET)
    superblock = Superblock.unpack(image.read(SUPERBLOCK_SIZE))
    made = superblock.inodes_count - superblock.free_inodes_count
    if made != last:
        raise FledgeError(
            f"mkfs.ext4 made {made} inodes where fledge expects {last}",
            "This version of e2fsprogs differs from those that fledge knows; try 1.47.0.",
        )


def _commands(tree: Tree, inodes: dict[Node, int], work: PrivateFolder) -> Iterator[bytes]:
    yield from _add_unstaged(tree, inodes)
    files: dict[bytes, bytes] = {}
    # In the order of the inode table, for debugfs caches its blocks.
    for node, inode in sorted(inodes.items(), key=lambda item: item[1]):
        for field, value in _fields(node):
            yield b"sif <%d> %s %s" % (inode, field, value)
        for name, value in sorted(node.xattrs.items()):
            if value not in files:
                name_of_value = f"value-{len(files)}"
                with work.create(name_of_value) as file:
                    file.write(value)
                files[value] = name_of_value.encode()
            yield b"ea_set -f %s <%d> %s" % (files[value], inode, _quoted(name))


def _staged_inodes(tree: Tree) -> dict[Node, int]:
    """The inode numbers that mke2fs gives to the staged nodes."""
    added = unstaged(tree)
    inodes: dict[Node, int] = {tree.root: ROOT}
    free = LOST_AND_FOUND + 1
    for path, node in tree.walk():
        if path == LOST_AND_FOUND_PATH:
            inodes[node] = LOST_AND_FOUND
        elif node not in inodes and path not in added:
            inodes[node] = free
            free += 1
    return inodes


def _add_unstaged(tree: Tree, inodes: dict[Node, int]) -> Iterator[bytes]:
    """Commands that add the unstaged nodes, and put the inodes of devices into ``inodes``."""
    added = unstaged(tree)
    directories = {path: inodes[node] for path, node in tree.walk() if isinstance(node, Directory)}
    links = Counter(node for _, node in tree.walk())
    free = max(inodes.values()) + 1
    for path, node in added.items():
        parent, _, name = path.rpartition(b"/")
        yield b"cd <%d>" % directories[parent]
        if node in inodes:
            yield b"ln <%d> %s" % (inodes[node], _quoted(name))
        else:
            kind = b"b" if isinstance(node, BlockDevice) else b"c"
            yield b"mknod %s %s 0 0" % (_quoted(name), kind)
            inodes[node] = free
            free += 1
        yield b"sif <%d> links_count %d" % (inodes[node], links[node])


def _fields(node: Node) -> Iterator[tuple[bytes, bytes]]:
    # Symlinks have no permissions in Linux. It always shows 0777.
    mode = 0o777 if isinstance(node, Symlink) else node.mode
    yield b"mode", b"0%o" % (node.file_type | mode)
    yield b"uid", b"%d" % node.uid
    yield b"gid", b"%d" % node.gid
    if isinstance(node, Device):
        # mknod takes no minor number above 65535, so the field is set, in the new encoding.
        yield b"block[1]", b"%d" % encode_device(node.major, node.minor)
    extra, low = divmod(pack_time(node.mtime_ns), 1 << 32)
    for field in (b"atime", b"ctime", b"mtime", b"crtime"):
        yield field, b"@%d" % low
        yield field + b"_extra", b"%d" % extra


def _quoted(text: bytes) -> bytes:
    """One argument in a debugfs command."""
    return b'"' + text.replace(b'"', b'""') + b'"'
