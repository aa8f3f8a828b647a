"""What an image can hold of a tree."""

from __future__ import annotations

from collections.abc import Iterator

from fledge.disks.squashfs.structures import MAX_IDS, MAX_SECONDS
from fledge.disks.squashfs.xattrs import can_store
from fledge.errors import CorruptError
from fledge.report import counted, human_size
from fledge.tree import NANOSECONDS, Directory, File, Node, Tree
from fledge.tree.content import content_size
from fledge.tree.limits import MAX_NAME, MAX_XATTR_SIZE, check_fits
from fledge.tree.names import printable

MAX_BLOCKS = 1 << 24
"""Maximum blocks in all files, 4 bytes each in memory and in the image. Without it, a few bytes
that claim to be a sparse file could fill the memory. It is 2 TiB in blocks of 128 KiB."""


def seconds(time_ns: int) -> int:
    """Return the time that an image has for one in nanoseconds: the nearest from 1970 to 2106."""
    return min(max(time_ns // NANOSECONDS, 0), MAX_SECONDS)


def check(tree: Tree, block_size: int) -> None:
    """Raise `CorruptError`, with the path, if an image cannot hold a node at all."""
    check_fits(tree)
    ids: set[int] = set()
    blocks = 0
    seen: set[Node] = set()
    for path, node in tree.walk():
        if node in seen:
            continue
        if not isinstance(node, Directory):
            seen.add(node)
        ids |= {node.uid, node.gid}
        if len(ids) > MAX_IDS:
            raise CorruptError(
                f"/{printable(path)}: up to here files have more than {MAX_IDS} owners and groups,"
                " and a squashfs can have no more",
                'Leave files out, or choose type = "ext4".',
            )
        if isinstance(node, File):
            blocks += content_size(node.content) // block_size
            if blocks > MAX_BLOCKS:
                raise CorruptError(
                    f"/{printable(path)}: up to here files have more than"
                    f" {human_size(MAX_BLOCKS * block_size)}, with their holes, and fledge writes"
                    f" no more into a squashfs with blocks of {human_size(block_size)}",
                    "Leave the file out, or choose a larger block_size.",
                )
        for name, value in node.xattrs.items():
            if can_store(name) and (len(name) > MAX_NAME or len(value) > MAX_XATTR_SIZE):
                raise CorruptError(
                    f"/{printable(path)}: the extended attribute {printable(name[:MAX_NAME])}"
                    f" has a name over {MAX_NAME} bytes or a value over {MAX_XATTR_SIZE}",
                    "Remove the attribute.",
                )


def losses(tree: Tree) -> Iterator[str]:
    """Yield a note for each kind of thing that an image cannot hold and that goes lost."""
    attributes: list[tuple[bytes, bytes]] = []
    times: list[bytes] = []
    seen: set[Node] = set()
    for path, node in tree.walk():
        if node in seen:
            continue
        seen.add(node)
        attributes += [(path, name) for name in node.xattrs if not can_store(name)]
        if not 0 <= node.mtime_ns // NANOSECONDS <= MAX_SECONDS:
            times.append(path)
    if attributes:
        path, name = attributes[0]
        yield (
            f"{counted(len(attributes), 'extended attribute')} left out, which squashfs cannot"
            f" hold, such as {printable(name)} of /{printable(path)}"
        )
    if times:
        yield (
            f"{counted(len(times), 'time')} set to the nearest that squashfs can hold, from 1970"
            f" to 2106, such as that of /{printable(times[0])}"
        )
