"""The data of a map of sizes: the largest files and folders, and what is left of each folder.

A page has no room for every file of a large artifact. Whatever is too small to be a part of the map
is counted in the nearest folder that is one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from fledge.cli.pages.page import encode, shown_name
from fledge.operations.sizes import parent

MAX_MAP = 900_000
"""Maximum bytes of a map as JSON."""

ROW_SIZE = 48
"""Bytes of a row of numbers, at most, beside its name."""


class Area(NamedTuple):
    """A file in the map."""

    path: bytes
    """Without a leading slash."""
    group: int
    """An index into the groups, which have a colour each."""
    sizes: tuple[int, ...]
    """In bytes. The first is the area; others are shown beside it."""


def as_json(
    areas: Sequence[Area], groups: Sequence[tuple[str, str]], mode: Literal["owner", "change"]
) -> dict[str, object]:
    """Return a map as JSON.

    ``groups`` are (title, description) of each group. ``mode`` says whether the groups are owners,
    or kinds of changes: then an area also has the sizes before and after. The result has
    ``folders`` as [number of the parent, name], the parent first; and ``areas`` as [folder, name,
    group, number of files, size, …], where the name is null for files that are too small to be
    shown.
    """
    limit = MAX_MAP
    while len(encode(found := _as_json(areas, groups, limit))) > MAX_MAP and limit > ROW_SIZE:
        limit //= 2
    return {**found, "mode": mode}


def _as_json(
    areas: Sequence[Area], groups: Sequence[tuple[str, str]], limit: int
) -> dict[str, object]:
    kept = _largest(areas, limit)
    numbers = {b"": 0}
    folders: list[tuple[int, str]] = [(0, "")]
    rows: list[tuple[int | str | None, ...]] = []
    rest: dict[tuple[int, int], list[int]] = defaultdict(list)
    for area in areas:
        folder = parent(area.path)
        number = _number(folder, kept, numbers, folders)
        if area.path in kept:
            name = shown_name(area.path.rpartition(b"/")[2])
            rows.append((number, name, area.group, 1, *area.sizes))
        else:
            totals = rest[number, area.group]
            before = totals or [0] * (1 + len(area.sizes))
            totals[:] = [a + b for a, b in zip(before, (1, *area.sizes), strict=True)]
    rows += [(number, None, group, *totals) for (number, group), totals in rest.items()]
    return {"groups": groups, "folders": folders, "areas": rows}


def _largest(areas: Iterable[Area], limit: int) -> set[bytes]:
    """Return the paths of the largest files, and of the largest folders, whose rows fit ``limit``.

    Whatever is among them, the folder that it is in is, too: it is not smaller, and comes first.
    """
    files: dict[bytes, int] = {}
    folders: dict[bytes, int] = {b"": 0}
    for area in areas:
        path, size = area.path, area.sizes[0]
        files[path] = size
        folder = parent(path)
        folders[folder] = folders.get(folder, 0) + size
    for path in list(folders):
        while path and (path := parent(path)) not in folders:
            folders[path] = 0
    for path in sorted(folders, reverse=True):  # what is in a folder before the folder
        if path:
            folders[parent(path)] += folders[path]
    weights = files | folders
    kept: set[bytes] = set()
    for path in sorted(weights, key=lambda path: (-weights[path], path)):
        if weights[path]:
            limit -= ROW_SIZE + len(encode(shown_name(path.rpartition(b"/")[2])))
        if not weights[path] or limit < 0:
            break
        kept.add(path)
    return kept


def _number(
    path: bytes, kept: set[bytes], numbers: dict[bytes, int], folders: list[tuple[int, str]]
) -> int:
    """Return the number of a folder, or of the nearest above it that is in the map."""
    missing = []
    while path not in numbers:
        missing.append(path)
        path = parent(path)
    number = numbers[path]
    for each in reversed(missing):
        if each in kept:
            folders.append((number, shown_name(each.rpartition(b"/")[2])))
            number = len(folders) - 1
        numbers[each] = number
    return number
