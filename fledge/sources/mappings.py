"""The user's own files: which there are, where they go, and with what permissions."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from fledge.errors import ConfigError, reason
from fledge.tree import Directory, File, Node, Symlink, Tree, TreeError
from fledge.tree.content import Blob, whole_file
from fledge.tree.limits import MAX_NAME
from fledge.tree.names import printable, split_path

EXECUTABLE_FOLDERS = (
    *(b"/bin/", b"/sbin/", b"/usr/bin/", b"/usr/sbin/", b"/usr/local/bin/", b"/usr/local/sbin/"),
    *(b"/opt/bin/", b"/lib/", b"/lib64/", b"/usr/lib/", b"/usr/lib64/"),
)
"""What is mapped below these is 0755 whatever the source's permissions."""


class Mapping(msgspec.Struct, frozen=True):
    """One line of ``[mappings]``."""

    source: Path
    """A file or folder on this machine."""
    destination: bytes
    """Absolute path in the artifact; one that ends in a slash takes a file's own name."""


class Placement(msgspec.Struct, frozen=True):
    """One file, folder or symlink that a mapping puts into the artifact."""

    path: bytes
    """Normalised, absolute; its parents may still lead through symlinks of the tree."""
    source: Path
    file_type: int
    """S_IFREG, S_IFDIR or S_IFLNK."""
    mode: int


def destination_problem(destination: str) -> str | None:
    """Why a destination of ``[mappings]`` cannot be one, or None."""
    parts = destination.split("/")
    if not destination.startswith("/"):
        return f'the destination must be absolute; write "/{destination}"'
    if ".." in parts:
        return "the destination must not contain .."
    if "\0" in destination:
        return "the destination must not contain a NUL character"
    if any(len(part.encode()) > MAX_NAME for part in parts):
        return f"a name in the destination is longer than {MAX_NAME} bytes"
    return None


def scan(mappings: Iterable[Mapping]) -> tuple[list[Placement], list[tuple[Mapping, str]]]:
    """All placements, parents first and sorted, and what is wrong, mapping by mapping.

    Reads names and permissions only. The order of the mappings makes no difference.
    """
    placed: dict[bytes, tuple[Placement, Mapping]] = {}
    problems: list[tuple[Mapping, str]] = []
    for mapping in sorted(mappings, key=lambda mapping: (mapping.destination, mapping.source)):
        for found in _expand(mapping):
            if isinstance(found, str):
                problems.append((mapping, found))
                continue
            old = placed.setdefault(found.path, (found, mapping))
            if old[0] is not found and not old[0].file_type == found.file_type == stat.S_IFDIR:
                problems.append((mapping, f"{old[0].source} goes to the same place"))
    for placement, mapping in placed.values():
        parent = _file_among_parents(placement.path, placed)
        if parent:
            problems.append((mapping, f"{parent.source} is a file and goes to a parent of it"))
    return [placed[path][0] for path in sorted(placed, key=split_path)], problems


def place(tree: Tree, placements: Iterable[Placement]) -> list[Blob]:
    """Lay the placements over the tree, as root's and with the tree's time.

    Folders that the tree has already keep their owner and permissions. Returns the contents
    of the files, with their digests. Raises `ConfigError`.
    """
    spans: list[Blob] = []
    mine: dict[Node, Placement] = {}
    # Symlinks first: the others may go through any of them.
    for placement in sorted(placements, key=lambda placement: placement.file_type != stat.S_IFLNK):
        try:
            if placement.file_type == stat.S_IFDIR:
                tree.make_directory(split_path(placement.path))
                continue
            old = tree.get(placement.path)
            if isinstance(old, Directory):
                raise TreeError("the tree has a folder there")
            if old in mine:
                raise TreeError(f"{mine[old].source} goes to the same place")
            if placement.file_type == stat.S_IFLNK:
                target = os.readlink(os.fsencode(placement.source))
                node: Node = Symlink(target=target, mtime_ns=tree.mtime_ns)
            else:
                spans.append(whole_file(placement.source))
                node = File(mode=placement.mode, mtime_ns=tree.mtime_ns, content=spans[-1])
            tree.add(placement.path, node)
        except TreeError as error:
            raise ConfigError(
                f"[mappings] {placement.source} cannot go to {printable(placement.path)}: {error}",
                "Choose another destination.",
            ) from None
        except OSError as error:
            raise ConfigError(f"{placement.source}: {reason(error)}") from None
        mine[node] = placement
    return spans


def _expand(mapping: Mapping) -> Iterator[Placement | str]:
    """The placements of one mapping, or texts that say what is wrong with it."""
    top = b"/" + b"/".join(split_path(mapping.destination))
    try:
        mode = mapping.source.stat().st_mode
    except OSError as error:
        yield f"{mapping.source}: {reason(error)}"
        return
    if stat.S_ISREG(mode):
        if mapping.destination.endswith(b"/"):
            top = top.rstrip(b"/") + b"/" + os.fsencode(mapping.source.name)
        yield from _file(mapping.source, top, mode)
    elif stat.S_ISDIR(mode):
        yield from _folder(mapping.source, top)
    else:
        yield f"{mapping.source} is {_kind(mode)}; only files and folders can be mapped"


def _file(source: Path, path: bytes, mode: int) -> Iterator[Placement | str]:
    if os.access(source, os.R_OK):
        executable = path.startswith(EXECUTABLE_FOLDERS) or mode & 0o111
        yield Placement(path, source, stat.S_IFREG, 0o755 if executable else 0o644)
    else:
        yield f"{source} cannot be read; change its permissions"


def _folder(top: Path, destination: bytes) -> Iterator[Placement | str]:
    pending = [(top, destination)]
    while pending:
        folder, path = pending.pop()
        yield Placement(path, folder, stat.S_IFDIR, 0o755)
        try:
            names = sorted(os.listdir(os.fsencode(folder)))
        except OSError as error:
            yield f"{folder}: {reason(error)}"
            continue
        for name in names:
            source = folder / os.fsdecode(name)
            child = path.rstrip(b"/") + b"/" + name
            try:
                mode = source.lstat().st_mode
            except OSError as error:
                yield f"{source}: {reason(error)}"
                continue
            if stat.S_ISDIR(mode):
                pending.append((source, child))
            elif stat.S_ISLNK(mode):
                yield Placement(child, source, stat.S_IFLNK, 0o777)
            elif stat.S_ISREG(mode):
                yield from _file(source, child, mode)
            else:
                yield f"{source} is {_kind(mode)}; only files and folders can be mapped"


def _file_among_parents(
    path: bytes, placed: dict[bytes, tuple[Placement, Mapping]]
) -> Placement | None:
    while (path := path.rpartition(b"/")[0]) != b"":
        placement = placed[path][0] if path in placed else None
        if placement and placement.file_type == stat.S_IFREG:
            return placement
    return None


def _kind(mode: int) -> str:
    if stat.S_ISSOCK(mode):
        return "a socket"
    if stat.S_ISFIFO(mode):
        return "a fifo"
    return "a device"
