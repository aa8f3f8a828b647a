"""The page of ``fledge diff --html``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fledge.cli.pages.areas import Area, as_json
from fledge.cli.pages.page import Column, Page, Table, shown_path
from fledge.operations.diff import Difference
from fledge.operations.sizes import SizeChange, SizeChanges
from fledge.report import counted, human_size
from fledge.tree.names import printable

GROUPS = (
    ("added", "Only in the second artifact"),
    ("removed", "Only in the first artifact"),
    ("changed", "In both, but not the same"),
)
_GROUP_NUMBERS = {name: number for number, (name, _) in enumerate(GROUPS)}

COLUMNS = (
    *(Column("Path", "path"), Column("Before", "size"), Column("After", "size")),
    Column("Change", "change"),
)


def difference_page(before: Path, after: Path, found: Difference, sizes: SizeChanges) -> Page:
    """Return the page of two artifacts, and how they differ."""
    areas = [
        Area(each.path, _GROUP_NUMBERS[each.kind], (max(each.before, each.after), *each[2:]))
        for each in sizes.files
    ]
    return Page(
        title=f"{printable(before.name)} → {printable(after.name)}",
        facts=_facts(found, sizes),
        notes=[*found.notes, *(f"Not compared: {each}." for each in found.not_compared)],
        map=as_json(areas, GROUPS, "change"),
        tables=tuple(_tables(sizes)),
    )


def _facts(found: Difference, sizes: SizeChanges) -> list[tuple[str, str]]:
    change = sizes.after.size - sizes.before.size
    bytes_differ = f"differ from offset {found.first_difference} on"
    return [
        ("Bytes", "are equal" if found.same_bytes else bytes_differ),
        ("Paths that differ", f"{len(found.changes)}"),
        ("Content before", f"{human_size(sizes.before.size)}, {_files(sizes.before.files)}"),
        ("Content after", f"{human_size(sizes.after.size)}, {_files(sizes.after.files)}"),
        ("Change", f"{'-' if change < 0 else '+'}{human_size(abs(change))}"),
    ]


def _files(count: int) -> str:
    return counted(count, "name") + " of files"


def _tables(sizes: SizeChanges) -> Iterator[Table]:
    for kind, text in GROUPS:
        files = sorted((each for each in sizes.files if each.kind == kind), key=_order)
        yield Table(
            f"{kind.capitalize()}: {counted(len(files), 'file')}",
            f"{text}. Those whose size changes most come first.",
            COLUMNS,
            ((shown_path(each.path), *each[2:], each.after - each.before) for each in files),
        )


def _order(change: SizeChange) -> tuple[int, bytes]:
    return -abs(change.after - change.before), change.path
