"""The list of commands, and the modules that each command loads."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from typer.main import get_command

from fledge.cli import app as cli
from fledge.cli.app import COMMANDS
from fledge.cli.options import EXIT_CODES
from tests.support import project
from tests.support.project import Fledge

HELP_COLUMNS = 80 - len("  version  ")
"""The length of a help text that fits on the narrowest terminal."""

START = {
    "fledge",
    "fledge._version",
    "fledge.cli",
    "fledge.cli.app",
    "fledge.cli.colour",
    "fledge.cli.interrupts",
    "fledge.cli.messages",
    "fledge.cli.options",
    "fledge.cli.streams",
    "fledge.cli.variables",
    "fledge.host",
    "fledge.host.process",
    "fledge.host.signals",
}
"""The modules of fledge that every command loads."""

COSTLY = {"cryptography", "docker", "oras", "packageurl", "packaging", "rich", "sqlite3"}
"""Libraries that a command loads only when it needs them."""

HTTP = {"http.client", "requests", "ssl", "urllib3"}
"""Libraries that only downloads need."""

LIBRARIES = (
    COSTLY
    | HTTP
    | {
        *("crc32c", "deflate", "isal", "lz4", "msgspec", "pyzstd", "tomli"),
        *("tomli_w", "zstandard", "asyncio"),
    }
)
"""All modules that are slow to import."""


DECLARATIONS = {
    *("fledge.cli.policies", "fledge.cli.runs", "fledge.errors"),
    *("fledge.project", "fledge.project.foreign"),
}
"""The modules of fledge that declare the options of commands, beside those of the commands."""


def loaded(folder: Path, *arguments: str, **variables: str) -> set[str]:
    """Return the modules that a process has loaded after running the command."""
    record = folder / "modules"
    code = (
        "import pathlib, sys\n"
        "sys.argv = ['fledge', *sys.argv[2:]]\n"
        "from fledge.cli.app import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        f"    pathlib.Path({str(record)!r}).write_text('\\n'.join(sys.modules))\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, "--", *arguments],
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=True,
    )
    return set(record.read_text().splitlines())


def own(modules: set[str]) -> set[str]:
    """Return those that belong to fledge."""
    return {name for name in modules if name.split(".")[0] == "fledge"}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_what_the_command_says(name: str) -> None:
    command = get_command(import_module(COMMANDS[name].module).app)
    line = COMMANDS[name].help
    assert command.help
    assert command.help.splitlines()[0] == line
    assert len(line) <= HELP_COLUMNS
    assert line.endswith(".")


def test_every_file_of_a_command_is_listed() -> None:
    folder = Path(cli.__file__).parent
    with_app = {path.stem for path in folder.glob("*.py") if "\napp = new_app(" in path.read_text()}
    assert with_app == {entry.module.rpartition(".")[2] for entry in COMMANDS.values()}
    assert with_app == set(COMMANDS)


def test_help_lists_all_commands(fledge: Fledge) -> None:
    done = fledge("--help")
    assert (done.code, done.err) == (0, "")
    section = done.out.split("Commands:\n")[1].split("\n\n")[0]
    rows = [tuple(line.split(maxsplit=1)) for line in section.splitlines()]
    assert rows == [(name, entry.help) for name, entry in COMMANDS.items()]


def test_without_a_command_there_is_help(fledge: Fledge) -> None:
    done = fledge()
    assert done.code == 2
    assert "Commands:\n" in done.out + done.err


@pytest.mark.parametrize(
    "command", [*((name,) for name in COMMANDS), ("cache", "verify"), ("cache", "prune")]
)
def test_help_of_a_command(fledge: Fledge, command: tuple[str, ...]) -> None:
    done = fledge(*command, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Usage:")
    assert " ".join(command) in done.out.splitlines()[0]
    text = " ".join(done.out.split())
    assert (EXIT_CODES in text) == (command != ("version",))
    if len(command) == 1:
        assert COMMANDS[command[0]].help in text


@pytest.mark.parametrize(
    ("typed", "meant"), [("bild", "build"), ("inspekt", "inspect"), ("versions", "version")]
)
def test_a_command_that_is_almost_right(fledge: Fledge, typed: str, meant: str) -> None:
    done = fledge(typed)
    assert (done.code, done.out) == (2, "")
    assert f"No such command '{typed}'. Did you mean '{meant}'" in done.err


def test_a_command_that_is_nothing_like_one(fledge: Fledge) -> None:
    done = fledge("xyzzy")
    assert (done.code, done.out) == (2, "")
    assert "No such command 'xyzzy'." in done.err
    assert "Did you mean" not in done.err


def test_an_option_before_the_command(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path)
    for options, err in (("--quiet",), False), (("-v",), True), (("-q", "-v"), True):
        done = fledge(*options, "build")
        assert bool(done.err) == err
        assert done.code == (2 if len(options) == 2 else 0)
    assert "No such option: --offline" in fledge("--offline", "build").err
    assert "No such option: -q" in fledge("-q", "lock").err
    assert fledge("-v").code == 2


def test_version_as_an_option(fledge: Fledge) -> None:
    assert fledge("--version").out == fledge("version").out


@pytest.mark.parametrize("command", [(), ("build",), ("cache",), ("cache", "prune")])
def test_short_help(fledge: Fledge, command: tuple[str, ...]) -> None:
    assert fledge(*command, "-h") == fledge(*command, "--help")
    assert fledge(*command, "-h").code == 0


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("-o", "a", "-o", "b"), "--output"),
        (("-o", "a", "--output=a"), "--output"),
    ],
)
def test_an_option_given_twice(fledge: Fledge, options: tuple[str, ...], name: str) -> None:
    done = fledge("build", *options)
    assert done.code == 2
    assert name in done.err
    assert "it is given twice" in done.err


def test_an_option_that_may_be_repeated(fledge: Fledge, tmp_path: Path) -> None:
    project.make_rootfs(tmp_path)
    assert fledge("lock", "--platform", "linux/amd64", "--platform", "linux/amd64").code == 0
    assert fledge("build", "-v", "-v").code == 0


@pytest.mark.parametrize(
    "command",
    [
        "inspect nope",
        "build -c nope",
        "verify nope",
        "diff nope nope",
        "check -c nope",
        "lock -c nope",
    ],
)
def test_a_missing_file(fledge: Fledge, tmp_path: Path, command: str) -> None:
    project.make(tmp_path)
    done = fledge(*command.split())
    assert done.code == 2
    assert re.search(r"error: nope(:| could not be read:) no such file", done.err)


def test_help_imports_no_command(tmp_path: Path) -> None:
    modules = loaded(tmp_path, "--help")
    assert own(modules) == START
    assert not modules & LIBRARIES


def test_version_imports_only_itself(tmp_path: Path) -> None:
    modules = loaded(tmp_path, "version")
    assert own(modules) == START | {"fledge.cli.version"}
    assert not modules & LIBRARIES


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_imports_only_its_options(tmp_path: Path, name: str) -> None:
    modules = loaded(tmp_path, name, "--help")
    assert own(modules) <= START | DECLARATIONS | {COMMANDS[name].module}
    assert not modules & LIBRARIES


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fledge ma", ["manifest"]),
        ("fledge ", list(COMMANDS)),
        ("fledge --h", ["--help"]),
        ("fledge build --o", ["--output", "--offline"]),
        ("fledge cache ", ["verify", "prune", "clear", "dir"]),
        ("fledge keygen --type ", ["ecdsa-p256", "ed25519"]),
        ("fledge inspect plugin.", []),
    ],
)
def test_completion(
    fledge: Fledge,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    words: list[str],
) -> None:
    monkeypatch.setenv("_FLEDGE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
    done = fledge()
    assert (done.code, done.err) == (0, "")
    assert done.out.split() == words


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "command"), [("fledge ", None), ("fledge build ", "build"), ("fledge che", None)]
)
def test_completion_imports_only_options(tmp_path: Path, line: str, command: str | None) -> None:
    modules = loaded(
        tmp_path,
        _FLEDGE_COMPLETE="complete_bash",
        COMP_WORDS=line,
        COMP_CWORD=str(line.count(" ")),
    )
    expected = START | DECLARATIONS | {COMMANDS[command].module} if command else START
    assert own(modules) <= expected
    assert not modules & LIBRARIES


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell(
    fledge: Fledge, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    monkeypatch.setenv("_FLEDGE_COMPLETE", f"source_{shell}")
    done = fledge()
    assert (done.code, done.err) == (0, "")
    assert f"_FLEDGE_COMPLETE=complete_{shell}" in done.out


def test_cache_needs_no_network_and_no_format(tmp_path: Path) -> None:
    modules = loaded(tmp_path, "cache")
    assert not modules & {*COSTLY, "requests", "urllib3", "deflate", "crc32c", "tomli"}
    for package in ("fledge.formats", "fledge.net", "fledge.oci", "fledge.operations"):
        assert package not in modules


@pytest.mark.slow
def test_commands_import_only_what_they_need(tmp_path: Path) -> None:
    project.make_rootfs(tmp_path)
    image = "hello.img"
    for command in (
        ("check",),
        ("lock",),
        ("fetch",),
        ("build", "-o", image),
        ("build", "-o", image, "--json", "-v"),
        ("verify", image),
        ("inspect", image),
        ("inspect", "--json", image),
        ("diff", image, image),
        ("schema",),
        ("cache", "verify"),
    ):
        modules = loaded(tmp_path, *command)
        assert not modules & COSTLY, command
        commands = {entry.module for entry in COMMANDS.values()} & modules
        assert commands == {COMMANDS[command[0]].module}
        if command[0] == "build":
            assert "fledge.operations.diff" not in modules
            assert "fledge.operations.inspect" not in modules
            assert not modules & HTTP, "nothing is downloaded"


@pytest.mark.slow
def test_only_what_touches_a_disk_loads_its_format(tmp_path: Path) -> None:
    project.make(tmp_path)
    for command in (
        ("check",),
        ("schema",),
        ("build", "-o", "plugin.gz"),
        ("inspect", "plugin.gz"),
    ):
        assert not loaded(tmp_path, *command) & {"crc32c", "fledge.ext4.structures"}, command
    project.make_rootfs(tmp_path)
    assert "crc32c" not in loaded(tmp_path, "check")
    assert "crc32c" in loaded(tmp_path, "build", "-o", "disk.img")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "module", ["fledge.cli.app", "typer.core", "fledge.cli.build", "fledge.operations", "msgspec"]
)
def test_a_signal_while_modules_are_loaded(
    tmp_path: Path, module: str, number: signal.Signals
) -> None:
    code = (
        "import os, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "sys.argv = ['fledge', 'build']\n"
        "from fledge.__main__ import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-number, "", "")
