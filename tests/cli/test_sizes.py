"""fledge inspect --tree and --top: sizes in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import fledge as library
from fledge.cli import sizes
from tests.support import layered, screen
from tests.support.project import Fledge

FLEDGE = [sys.executable, "-m", "fledge"]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    library.build(layered.make(tmp_path), tmp_path / "disk")
    return tmp_path / "disk"


def test_tree(fledge: Fledge, disk: Path) -> None:
    lines = fledge("inspect", disk, "--tree").out.splitlines()
    assert [line.split(maxsplit=3) for line in lines[:3]] == [
        ["47.8", "KiB", "100.0%", "/"],
        ["29.8", "KiB", "62.3%", "bin/"],
        ["15.6", "KiB", "32.7%", "usr/"],
    ]
    assert lines[3].endswith("    lib/")
    assert len(fledge("inspect", disk, "--tree", "--depth", "1").out.splitlines()) == 6


def test_tree_below_a_path(fledge: Fledge, disk: Path) -> None:
    lines = fledge("inspect", disk, "/usr", "--tree").out.splitlines()
    assert [line.split()[-1] for line in lines] == ["/usr", "lib/"]


def test_many_folders(fledge: Fledge, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "MAX_FOLDERS", 2)
    lines = fledge("inspect", disk, "--tree", "--depth", "1").out.splitlines()
    assert [line.split(maxsplit=3)[3] for line in lines] == [
        "/",
        "bin/",
        "usr/",
        "and 3 more folders",
    ]


def test_top(fledge: Fledge, disk: Path) -> None:
    lines = fledge("inspect", disk, "--top", "3").out.splitlines()
    assert lines == [
        "    29.3 KiB   61.2%  /bin/tool",
        "     7.8 KiB   16.3%  /usr/lib/link",
        "     7.8 KiB   16.3%  /usr/lib/two",
    ]
    lines = fledge("inspect", disk, "/names", "--top", "9").out.splitlines()
    assert [line.split(maxsplit=3)[3] for line in lines] == [
        "/names/x<script>alert(1)</script>",
        "/names/\"'&<!--",
        "/names/\\u202egpj.exe",
        "/names/\\xff\\n\\x1b[2J",
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tree", "--top", "3"), "--tree and --top exclude each other"),
        (("--list", "--json"), "--list and --json exclude each other"),
        (("--json", "--html", "x"), "--json and --html exclude each other"),
        (("--depth", "3"), "--depth needs --tree"),
        (("/bin", "--html", "x"), "--html shows the whole artifact"),
        (("/bin/tool", "--tree"), "/bin/tool in disk is not a directory"),
        (("/none", "--top", "3"), "disk has no /none"),
        (("--top", "0"), "0 is not in the range"),
    ],
)
def test_wrong_options(fledge: Fledge, disk: Path, options: tuple[str, ...], words: str) -> None:
    done = fledge("inspect", disk.name, *options)
    assert (done.code, done.out) == (2, "")
    assert words in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("name", "columns", "shown"),
    [
        ("short", 5, "short"),
        ("longer", 5, "lo…er"),
        ("/a/very/long/path", 10, "/a/ve…path"),
        ("日本語日本語", 7, "日…本語"),
        ("é" * 4, 3, "é…é"),
    ],
)
def test_a_name_is_cut_to_fit(name: str, columns: int, shown: str) -> None:
    assert sizes._fitted(name, columns) == shown


@pytest.mark.slow
def test_on_a_terminal_no_line_is_broken(disk: Path) -> None:
    shown = screen.run(
        [*FLEDGE, "inspect", disk, "--top", "20"], disk.parent, columns=44, encoding="utf-8"
    )
    assert shown.code == 0
    lines = [line for line in shown.lines if line.strip()]
    assert len(lines) == 13
    assert all("%  /" in line for line in lines)
