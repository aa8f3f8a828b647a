"""Options that all commands share: -C, --color, variables, the config of a parent folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fledge.cli.app import COMMANDS
from fledge.cli.manual import cli_page, entries, manual_page
from fledge.project.schema import schema
from tests.support import project
from tests.support.project import Fledge

CHECKOUT = Path(__file__).parents[2]

ESCAPE = "\x1b["


def test_a_folder_to_run_in(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path / "one" / "two")
    assert fledge("-C", "one", "-q", "-C", "two", "build", "-o", "plugin.gz").code == 0
    assert (tmp_path / "one" / "two" / "plugin.gz").is_file()


def test_a_folder_that_is_not_there(fledge: Fledge) -> None:
    done = fledge("-C", "nope", "build")
    assert (done.code, done.out) == (2, "")
    assert "Invalid value for -C: nope: no such file or directory" in done.err


@pytest.mark.parametrize("place", ["before", "behind"])
def test_colours_by_choice(fledge: Fledge, place: str) -> None:
    def run(when: str) -> str:
        option = f"--color={when}"
        return fledge(*([option, "check"] if place == "before" else ["check", option])).err

    assert run("always").startswith(ESCAPE)
    assert run("auto") == run("never") == fledge("check").err
    assert ESCAPE not in run("never")


def test_colours_by_the_environment(fledge: Fledge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert ESCAPE in fledge("check").err
    assert ESCAPE not in fledge("check", "--color", "never").err
    monkeypatch.setenv("NO_COLOR", "1")
    assert ESCAPE not in fledge("check").err
    monkeypatch.setenv("FLEDGE_COLOR", "always")
    assert ESCAPE in fledge("check").err


def test_a_log_in_colour(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path)
    plain, coloured = fledge("build").err, fledge("build", "--color", "always").err
    assert ESCAPE in coloured
    assert len(coloured.splitlines()) == len(plain.splitlines())


def test_a_variable_sets_an_option(
    fledge: Fledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.make(tmp_path / "here")
    project.make(tmp_path / "there")
    monkeypatch.setenv("FLEDGE_CONFIG", "here/fledge.toml")
    monkeypatch.setenv("FLEDGE_OUTPUT", "made.gz")
    monkeypatch.setenv("FLEDGE_QUIET", "yes")
    assert fledge("build") == project.Outcome(0, "made.gz\n", "")
    assert fledge("build", "-o", "other.gz").out == "other.gz\n", "an option takes precedence"
    done = fledge("check", "there")
    assert "there" in done.out + done.err or done.code == 0
    assert fledge("build", "there").out == "made.gz\n", "what is named takes its place"


@pytest.mark.parametrize(
    ("name", "value", "command", "shown"),
    [
        ("FLEDGE_OFFLINE", "maybe", ("build",), "Invalid value for FLEDGE_OFFLINE: 'maybe'"),
        ("FLEDGE_THRESHOLD", "x", ("verify", "a"), "Invalid value for FLEDGE_THRESHOLD: 'x'"),
        ("FLEDGE_PLATFORM", "x", ("build",), "Set in the environment: FLEDGE_PLATFORM"),
        ("FLEDGE_COLOR", "red", ("build",), "Invalid value for FLEDGE_COLOR"),
    ],
)
def test_a_wrong_value_names_its_variable(
    fledge: Fledge,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    command: tuple[str, ...],
    shown: str,
) -> None:
    project.make(tmp_path)
    monkeypatch.setenv(name, value)
    done = fledge(*command)
    assert done.code == 2
    assert shown in done.err


def test_variables_have_one_meaning() -> None:
    meanings: dict[str, set[str]] = {}
    for each in entries():
        for forms, _, variable in each.options:
            if variable:
                last = forms.split()[-1]
                meanings.setdefault(variable, set()).add("" if last.startswith("-") else last)
    assert [name for name, metavars in meanings.items() if len(metavars) > 1] == []
    assert {"FLEDGE_SIGN_KEY", "FLEDGE_PULL_OUTPUT", "FLEDGE_CACHE_PRUNE_REGISTRY"} <= set(meanings)


@pytest.mark.parametrize("columns", ["80", "120"])
def test_help_is_whole(fledge: Fledge, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for command in ((), *((name,) for name in COMMANDS)):
        done = fledge(*command, "--help")
        assert not re.search(r"\w\.\.\.$", done.out, re.MULTILINE)
        assert max(map(len, done.out.splitlines())) <= int(columns)
    assert "remove and list damaged ones." in fledge("cache", "--help").out


def test_help_names_the_variables(fledge: Fledge) -> None:
    assert "FLEDGE_OFFLINE" in fledge("build", "--help").out
    assert fledge("help", "build").out == fledge("build", "--help").out
    assert fledge("help", "cache", "prune").out == fledge("cache", "prune", "--help").out
    assert fledge("help").out == fledge("--help").out
    assert "No such command 'nope'" in fledge("help", "nope").err


def test_the_config_of_a_parent_folder(
    fledge: Fledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.make(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    done = fledge("build")
    assert done.code == 0
    assert done.err.startswith("  using ../../fledge.toml\n")
    assert (tmp_path / "plugin.cpio.gz").is_file(), "beside its fledge.toml"
    assert fledge("build", "-o", "own.gz").code == 0
    assert Path("own.gz").is_file(), "relative to the working directory"
    assert "using" not in fledge("check", "-c", "../../fledge.toml").err


@pytest.mark.parametrize("border", ["repository", "home", "owner"])
def test_where_the_search_ends(
    fledge: Fledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, border: str
) -> None:
    config = project.make(tmp_path)
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    if border == "repository":
        (tmp_path / "a" / ".git").mkdir()
    elif border == "home":
        monkeypatch.setenv("HOME", str(tmp_path / "a"))
    else:
        monkeypatch.setattr("os.getuid", lambda: config.stat().st_uid + 1)
        if config.stat().st_uid == 0:
            return  # a file of root counts for everybody
    monkeypatch.chdir(folder)
    done = fledge("check")
    assert done.code == 2
    assert "fledge.toml: no such file" in done.err


def test_set_is_recorded_and_locked(fledge: Fledge, tmp_path: Path) -> None:
    project.make_rootfs(tmp_path)
    change = ("--set", "filesystem.size_buffer_mb=9")
    assert fledge("build", "-o", "a.img", *change).code == 0
    record = json.loads((tmp_path / "a.img.provenance.json").read_text())
    assert '"size_buffer_mb": 9' in json.dumps(record)
    assert fledge("verify", "a.img", *change).code == 0
    assert "recorded 9, here 8" in fledge("verify", "a.img").err
    assert fledge("lock").code == 0
    assert fledge("lock", "--check", "--set", "filesystem.size_buffer_mb=9").code == 0
    (tmp_path / "layout").rename(tmp_path / "moved")
    done = fledge("lock", "--check", "--set", "source.image=oci:moved:hello")
    assert done.code == 1
    assert "is not up to date" in done.err
    assert fledge("check", "--set", "filesystem.typ=xfs").code == 2


def test_config_show(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path)
    done = fledge("config", "show", "--set", "target.kernel=volant")
    assert done.code == 0
    assert 'target.kernel = "volant"' in done.out
    assert "# --set target.kernel\n" in done.out
    [found] = [
        each
        for each in json.loads(fledge("config", "show", "--json").out)
        if each["key"] == "strategy"
    ]
    assert found == {"key": "strategy", "value": "initramfs", "origin": "fledge.toml:2"}


def test_dry_run(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path)
    done = fledge("build", "--dry-run", "-o", "plugin.gz")
    assert done.code == 0
    assert done.out.splitlines() == [
        f"fetch  {(tmp_path / 'busybox').as_uri()}  (busybox: size unknown)",
        "write  plugin.gz",
        "write  plugin.gz.provenance.json",
    ]
    assert not list(tmp_path.glob("plugin.gz*"))
    assert fledge("build", "-q", "-o", "plugin.gz").code == 0
    found = json.loads(fledge("build", "--dry-run", "--json").out)
    assert found == {"fetch": [], "write": ["plugin.cpio.gz", "plugin.cpio.gz.provenance.json"]}
    assert fledge("build", "--dry-run", "--changed").code == 2


def test_clearing_the_cache(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path)
    assert fledge("build", "-q").code == 0
    folder = Path(fledge("cache", "dir").out.strip())
    assert list((folder / "blobs" / "sha256").iterdir())
    refused = fledge("cache", "clear")
    assert refused.code == 2
    assert "--yes" in refused.err
    assert list((folder / "blobs" / "sha256").iterdir())
    done = fledge("cache", "clear", "--yes")
    assert done.code == 0
    assert "left: 0 files" in done.out
    assert not list((folder / "blobs" / "sha256").iterdir())


def test_pages_are_up_to_date() -> None:
    assert (CHECKOUT / "docs/cli.md").read_text() == cli_page(), "scripts/reference"
    assert (CHECKOUT / "docs/fledge.1").read_text() == manual_page(), "scripts/reference"
    assert {each.name for each in entries()} > set(COMMANDS)
    for table in schema().tables:
        for name, keys in table.by_name().items():
            if keys[0].variables:
                assert f"`[{table.name}] {name}`" in cli_page()
