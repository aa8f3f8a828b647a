"""Artifacts and differences formatted as lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from fledge.cli import views
from fledge.formats import FORMATS
from fledge.operations.diff import Change, Detail, Difference


def added(count: int) -> tuple[Change, ...]:
    return tuple(Change(b"%d" % number, "added") for number in range(count))


def test_views_name_no_format() -> None:
    source = Path(views.__file__).read_text()
    for each in FORMATS:
        assert each.name not in source
        assert each.__module__ not in source


def test_the_same_bytes() -> None:
    assert list(views.difference_lines(Difference(None, (), {}, {}, ()))) == ["all bytes are equal"]


def test_another_container() -> None:
    found = Difference(
        7,
        (),
        {"size": (1, 2), "archives": ([], ["gzip"] * 30), "label": (b"\xff", None)},
        {"ctime_ns": Detail(1, b"a\x1b", 0, 1), "links": Detail(2, b"b", 1, 2)},
        ("extended attributes",),
        ("a note",),
    )
    assert list(views.difference_lines(found)) == [
        "the trees are equal, but the bytes differ",
        "  first different byte at 7",
        "  not compared, because only one of the two formats supports it: extended attributes",
        "  a note",
        "  size: 1 → 2",
        f"  archives: none → {', '.join(['gzip'] * views.MAX_VALUES)}, 10 more",
        "  label: \\xff → none",
        "  ctime: 1970-01-01 00:00:00 → 1970-01-01 00:00:00.000000001 (1 path /a\\x1b)",
        "  links: 1 → 2 (2 paths, first /b)",
    ]


def test_changes() -> None:
    changed = Change(b"etc/x", "changed", {"mode": ("0644", "0600")}, ("-a", "+b"))
    found = Difference(0, (changed, Change(b"\xff", "removed")), {}, {}, ())
    assert list(views.difference_lines(found)) == [
        "2 paths differ",
        "  first different byte at 0",
        "~ /etc/x: mode 0644 → 0600",
        "    -a",
        "    +b",
        "- /\\xff",
    ]


@pytest.mark.parametrize(
    ("changes", "last"),
    [
        (8, "+ /7"),
        (9, "… and 1 more line; use -v or --json to see all"),
        (20, "… and 12 more lines; use -v or --json to see all"),
    ],
)
def test_a_long_difference_is_cut(changes: int, last: str) -> None:
    found = Difference(0, added(changes), {}, {}, ())
    lines = list(views.difference_lines(found, 10))
    assert lines[-1] == last
    assert len(lines) == min(changes + 2, 11)
    assert len(list(views.difference_lines(found))) == changes + 2
