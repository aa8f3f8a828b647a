"""Formats the sizes of folders and files as lines, for ``fledge inspect --tree`` and ``--top``."""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterator

from fledge.operations.sizes import FolderSize, folder_sizes, largest_files, parent
from fledge.report import counted, human_size
from fledge.tree import Directory, Tree
from fledge.tree.names import printable, split_path

MAX_FOLDERS = 20
"""Maximum folders of one folder that have a line. One more line adds up the rest."""

MIN_COLUMNS = 20
"""Minimum columns for a name, however narrow the terminal is."""


def folder_lines(path: bytes, top: Directory, depth: int) -> Iterator[str]:
    """Yield a line for each folder down to ``depth`` below ``path``, the largest first.

    It has the size of all files in and below the folder, and its share of the whole.
    """
    sizes = folder_sizes(_tree_of(top))
    inside: dict[bytes, list[bytes]] = defaultdict(list)
    for each in sizes:
        if each:
            inside[parent(each)].append(each)
    whole = sizes[b""]
    # (level, path or None for the rest of a folder, name, size): the last one is next
    pending: list[tuple[int, bytes | None, str, FolderSize]] = [(0, b"", _shown(path), whole)]
    while pending:
        level, folder, name, size = pending.pop()
        yield _line(size.size, whole.size, "  " * level + name)
        if folder is None or level == depth:
            continue
        below = sorted(inside[folder], key=lambda each: (-sizes[each].size, each))
        if rest := [sizes[each] for each in below[MAX_FOLDERS:]]:
            total = FolderSize(sum(each.size for each in rest), sum(each.files for each in rest))
            pending.append((level + 1, None, f"and {counted(len(rest), 'more folder')}", total))
        pending += (
            (level + 1, each, printable(each.rpartition(b"/")[2]) + "/", sizes[each])
            for each in reversed(below[:MAX_FOLDERS])
        )


def file_lines(path: bytes, top: Directory, count: int) -> Iterator[str]:
    """Yield a line for each of the ``count`` largest files below ``path``, the largest first.

    It has the size of the file, and its share of the whole.
    """
    tree = _tree_of(top)
    whole = folder_sizes(tree)[b""].size
    prefix = b"/".join(split_path(path))
    for file in largest_files(tree, count):
        name = b"/".join(filter(None, (prefix, file.path)))
        yield _line(file.size, whole, _shown(name))


def _tree_of(top: Directory) -> Tree:
    tree = Tree(mtime_ns=0)
    tree.root = top
    return tree


def _shown(path: bytes) -> str:
    return printable(b"/" + b"/".join(split_path(path)))


def _line(size: int, whole: int, name: str) -> str:
    share = f"{100 * size / whole:.1f}%" if whole else "-"
    start = f"{human_size(size):>12}  {share:>6}  "
    if sys.stdout.isatty():
        columns = shutil.get_terminal_size().columns - len(start)
        name = _fitted(name, max(columns, MIN_COLUMNS))
    return start + name


def _fitted(name: str, columns: int) -> str:
    """Return a name without its middle if it takes more columns of a terminal than these."""
    widths = [_width(each) for each in name]
    if sum(widths) <= columns:
        return name
    head = tail = 0
    left, right = 0, len(name)
    # One column is for the ellipsis.
    while head + widths[left] <= columns // 2:
        head += widths[left]
        left += 1
    while head + tail + widths[right - 1] < columns:
        right -= 1
        tail += widths[right]
    return f"{name[:left]}…{name[right:]}"


def _width(character: str) -> int:
    """Return the columns that a printable character takes (Unicode Standard Annex 11)."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
