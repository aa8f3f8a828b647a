"""Adds up the sizes of files: by folder, and of each file with several names only once."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from fledge.formats import open_artifact
from fledge.host.files import PathLike
from fledge.operations.diff import Difference
from fledge.tree import Directory, File, Tree
from fledge.tree.content import content_size


class SizedFile(NamedTuple):
    """A name of a file."""

    path: bytes
    """Without a leading slash."""
    node: File
    size: int
    """Bytes of content, holes included. 0 for all names of a hard link but the first."""


class FolderSize(msgspec.Struct):
    """What is in a folder and in the folders below it."""

    size: int = 0
    """Bytes of content."""
    files: int = 0
    """Names of files."""


class SizeChange(NamedTuple):
    """A file of two artifacts that is not the same in both, or has another size."""

    path: bytes
    kind: Literal["added", "removed", "changed"]
    before: int
    """Bytes in the first artifact, as in `SizedFile`; 0 if it is not there."""
    after: int
    """Bytes in the second artifact."""


class SizeChanges(msgspec.Struct, frozen=True):
    """The files that differ between two artifacts."""

    before: FolderSize
    """All files of the first artifact."""
    after: FolderSize
    """All files of the second artifact."""
    files: tuple[SizeChange, ...]
    """Sorted by path. Their sizes add up to the difference between the artifacts."""


def sized_files(tree: Tree) -> Iterator[SizedFile]:
    """Yield every name of a file, in the order of `Tree.walk`."""
    seen: set[File] = set()
    for path, node in tree.walk():
        if isinstance(node, File):
            yield SizedFile(path, node, 0 if node in seen else content_size(node.content))
            seen.add(node)


def folder_sizes(tree: Tree) -> dict[bytes, FolderSize]:
    """Return the size of each folder by its path, in the order of `Tree.walk`."""
    sizes: dict[bytes, FolderSize] = {}
    seen: set[File] = set()
    for path, node in tree.walk():
        if isinstance(node, Directory):
            sizes[path] = FolderSize()
        elif isinstance(node, File):
            folder = sizes[parent(path)]
            folder.files += 1
            if node not in seen:
                folder.size += content_size(node.content)
                seen.add(node)
    for path in reversed(sizes):
        if path:
            above = sizes[parent(path)]
            above.size += sizes[path].size
            above.files += sizes[path].files
    return sizes


def largest_files(tree: Tree, count: int) -> list[SizedFile]:
    """Return the ``count`` largest files, the largest first; by path if they are equal."""
    return heapq.nsmallest(count, sized_files(tree), key=lambda file: (-file.size, file.path))


def parent(path: bytes) -> bytes:
    """Return the path of the folder that a path is in. The root is in itself."""
    return path.rpartition(b"/")[0]


def size_changes(before: PathLike, after: PathLike, difference: Difference) -> SizeChanges:
    """Return the sizes of the files that differ between two artifacts, as `diff` found them.

    Raises what `fledge.formats.open_artifact` raises.
    """
    old, new = (_sizes(Path(each)) for each in (before, after))
    paths = {change.path for change in difference.changes} & (old.keys() | new.keys())
    paths |= {path for path in old.keys() | new.keys() if old.get(path) != new.get(path)}
    return SizeChanges(
        FolderSize(sum(old.values()), len(old)),
        FolderSize(sum(new.values()), len(new)),
        tuple(
            SizeChange(
                path,
                "added" if path not in old else "removed" if path not in new else "changed",
                old.get(path, 0),
                new.get(path, 0),
            )
            for path in sorted(paths)
        ),
    )


def _sizes(artifact: Path) -> dict[bytes, int]:
    with open_artifact(artifact) as opened:
        return {file.path: file.size for file in sized_files(opened.tree)}
