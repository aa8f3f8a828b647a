"""What a plain user cannot stage, as a script for debugfs(8).

Nodes are named by inode number: mke2fs walks the staged tree depth first in sorted order,
as `Tree.walk` does, and takes the lowest free inode each time. Only what is not
staged, and the names of xattrs, are spelled out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fledge.errors import CorruptError, FledgeError
from fledge.ext4 import xattr
from fledge.ext4.plan import LOST_AND_FOUND_PATH, MAX_LINKS
from fledge.ext4.structures import (
    BLOCK_SIZE,
    LOST_AND_FOUND,
    ROOT,
    SUPERBLOCK_OFFSET,
    SUPERBLOCK_SIZE,
    Superblock,
    new_device,
    pack_time,
)
from fledge.host import programs as tools
from fledge.tree import BlockDevice, Device, Directory, Node, Symlink, Tree
from fledge.tree.names import printable

MAX_SUBDIRECTORIES = MAX_LINKS - 2

OVERRUN = 2039
"""The length of a path whose last byte mke2fs (1.47.0 at least) writes behind its buffer of
2040: path_append in create_inode.c has no room for the slash. Other lengths are rounded up
by the allocator."""

XATTR_END = 4
"""Zeros behind the last entry of a block."""

LINE_BREAK = re.compile(rb"[\r\n]")
"""What no quotes protect in a script: debugfs ends the line there."""


def clock(epoch: int) -> dict[str, str]:
    """The environment in which e2fsprogs take ``epoch`` for the time."""
    return {"E2FSPROGS_FAKE_TIME": str(epoch), "SOURCE_DATE_EPOCH": str(epoch)}


def finish(tree: Tree, work: Path, epoch: int) -> None:
    """Set in ``work/image``, which mke2fs made of the staged tree, what is still missing.

    Raises `FledgeError` if debugfs does not do all of it.
    """
    inodes = _staged_inodes(tree)
    _check_numbering(work / "image", max(inodes.values()))
    (work / "values").mkdir()
    with (work / "script").open("wb") as script:
        for command in _commands(tree, inodes, work / "values"):
            script.write(command + b"\n")
    said = tools.run(
        "debugfs", "-w", "-f", "script", "image", folder=work, environment=clock(epoch)
    )
    # It goes on after an error and reports none in the end; its first line is its version.
    if errors := said.partition("\n")[2]:
        raise tools.failed("debugfs", errors)


def unstaged(tree: Tree) -> dict[bytes, Node]:
    """Paths that debugfs adds: devices, and second names of symlinks, which mke2fs copies."""
    late: dict[bytes, Node] = {}
    seen: set[Node] = set()
    for path, node in tree.walk():
        if isinstance(node, Device) or (isinstance(node, Symlink) and node in seen):
            late[path] = node
        seen.add(node)
    return late


def check_fits(tree: Tree) -> None:
    """Raise `CorruptError`, with the path, for what fits into ext4 but not through e2fsprogs.

    The tree must have a plan: that is what tells that it fits into ext4.
    """
    late = unstaged(tree)
    for path, node in tree.walk():
        problem = _problem(path, node)
        if path in late and LINE_BREAK.search(path.rpartition(b"/")[2]):
            problem = "neither devices nor hard links to symlinks can have a line break in the name"
        if problem:
            raise CorruptError(f"/{printable(path)}: {problem}")


def _problem(path: bytes, node: Node) -> str | None:
    if len(path) == OVERRUN:
        return f"mke2fs corrupts its memory at paths of exactly {OVERRUN} bytes"
    if isinstance(node, Directory):
        subdirectories = node.links - 2
        if subdirectories > MAX_SUBDIRECTORIES:
            return f"{subdirectories} directories in one; mke2fs puts {MAX_SUBDIRECTORIES} there"
    return _xattr_problem(node)


def _xattr_problem(node: Node) -> str | None:
    size = xattr.HEADER.size + XATTR_END
    for name, value in node.xattrs.items():
        suffix = name.partition(b".")[2]
        if LINE_BREAK.search(name):
            return f"ext4 has no place for the extended attribute {printable(name)}"
        size += xattr.ENTRY.size + len(suffix) + 3 + len(value) + 3
    if size > BLOCK_SIZE:
        return f"extended attributes of {size} bytes; ext4 has {BLOCK_SIZE} for them"
    return None


def _check_numbering(image: Path, last: int) -> None:
    """Raise `FledgeError` if mke2fs has not used the inodes up to ``last``, and no other."""
    with image.open("rb") as file:
        file.seek(SUPERBLOCK_OFFSET)
        superblock = Superblock.unpack(file.read(SUPERBLOCK_SIZE))
    made = superblock.inodes_count - superblock.free_inodes_count
    if made != last:
        raise FledgeError(
            f"mkfs.ext4 made {made} inodes where fledge expects {last}",
            "This version of e2fsprogs differs from those that fledge knows; try 1.47.0.",
        )


def _commands(tree: Tree, inodes: dict[Node, int], values: Path) -> Iterator[bytes]:
    yield from _add_unstaged(tree, inodes)
    files: dict[bytes, bytes] = {}
    # In the order of the inode table debugfs finds each block in its cache.
    for node, inode in sorted(inodes.items(), key=lambda item: item[1]):
        for field, value in _fields(node):
            yield b"sif <%d> %s %s" % (inode, field, value)
        for name, value in sorted(node.xattrs.items()):
            if value not in files:
                files[value] = b"values/%d" % len(files)
                (values / str(len(files) - 1)).write_bytes(value)
            yield b"ea_set -f %s <%d> %s" % (files[value], inode, _quoted(name))


def _staged_inodes(tree: Tree) -> dict[Node, int]:
    late = unstaged(tree)
    inodes: dict[Node, int] = {tree.root: ROOT}
    free = LOST_AND_FOUND + 1
    for path, node in tree.walk():
        if path == LOST_AND_FOUND_PATH:
            inodes[node] = LOST_AND_FOUND
        elif node not in inodes and path not in late:
            inodes[node] = free
            free += 1
    return inodes


def _add_unstaged(tree: Tree, inodes: dict[Node, int]) -> Iterator[bytes]:
    """Commands for all that is unstaged; the inodes of devices go into ``inodes``."""
    late = unstaged(tree)
    directories = {path: inodes[node] for path, node in tree.walk() if isinstance(node, Directory)}
    links = Counter(node for _, node in tree.walk())
    free = max(inodes.values()) + 1
    for path, node in late.items():
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
    # Linux has no permissions on symlinks: they always are 0777.
    mode = 0o777 if isinstance(node, Symlink) else node.mode
    yield b"mode", b"0%o" % (node.file_type | mode)
    yield b"uid", b"%d" % node.uid
    yield b"gid", b"%d" % node.gid
    if isinstance(node, Device):
        # mknod takes no minor above 65535, so the number is set like any field, in the
        # new encoding, which stands in the second word.
        yield b"block[1]", b"%d" % new_device(node.major, node.minor)
    low, extra = pack_time(node.mtime_ns)
    for field in (b"atime", b"ctime", b"mtime", b"crtime"):
        yield field, b"@%d" % low
        yield field + b"_extra", b"%d" % extra


def _quoted(text: bytes) -> bytes:
    """One argument in a debugfs command."""
    return b'"' + text.replace(b'"', b'""') + b'"'
