"""Completion in real shells, by the scripts that ``fledge completion`` prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fledge.cli.completion import SCRIPTS, Shell
from fledge.host.settings import Settings
from fledge.store.cache import Cache
from tests.support.project import Fledge

pytestmark = [pytest.mark.real, pytest.mark.slow]

LINES = {
    "fledge ma": ["manifest"],
    "fledge build --off": ["--offline"],
    "fledge build --platform linux/am": ["linux/amd64"],
    "fledge build --platform=linux/am": ["linux/amd64"],
    "fledge cache cl": ["clear"],
    "fledge completion z": ["zsh"],
    "fledge help doc": ["doctor"],
    "fledge -C . ver": ["verify", "version"],
    "fledge --color al": ["always"],
    "fledge inspect plug": ["plugin.cpio.gz"],
    "fledge pull registry.example:50": ["registry.example:5000/web:1"],
    "fledge build --set source.image=registry.example:50": ["registry.example:5000/web:1"],
}
"""A line, and what it can be completed to."""

DRIVERS = {
    Shell.BASH: """
        source ./script
        COMP_LINE=$1 COMP_POINT=${#1}
        _fledge fledge
        if [[ ${#COMPREPLY[@]} -eq 0 ]]; then compgen -f -- "${1##* }"; fi
        printf '%s\\n' "${COMPREPLY[@]}"
    """,
    Shell.FISH: """
        source ./script
        for each in (complete --do-complete "$argv[1]")
            string split \\t -- $each | head -1
        end
    """,
}
"""A program of a shell that prints what a line is completed to."""

ZSH = """
zmodload zsh/zpty
zpty shell 'zsh -f -i'
zpty -w shell 'PS1=; autoload -Uz compinit; compinit -u -D; source ./script'
zpty -w shell 'show() { print -r -- "<$BUFFER>" > out }; zle -N show; bindkey "^X" show'
zpty -w shell 'print ready > out'
until [[ -s out ]]; do zpty -r -t shell line; sleep 0.05; done
zpty -w -n shell "$1"$'\\t\\x18'
until grep -q '<' out; do zpty -r -t shell line; sleep 0.05; done
zpty -d shell
"""
"""zsh completes only in its line editor, which needs a terminal. A key then writes the line to a
file."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an artifact, in which ``fledge`` is the one that is tested."""
    (tmp_path / "plugin.cpio.gz").write_bytes(b"")
    path = tmp_path / "bin"
    path.mkdir()
    program = path / "fledge"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m fledge "$@"\n')
    program.chmod(0o755)
    Cache(Settings.from_environment().cache_folder).remember("registry.example:5000/web:1")
    monkeypatch.setenv("PATH", f"{path}:{os.environ['PATH']}")
    return tmp_path


@pytest.mark.parametrize("shell", [Shell.BASH, Shell.FISH])
def test_lines(folder: Path, shell: Shell) -> None:
    (folder / "script").write_text(SCRIPTS[shell])
    for line, words in LINES.items():
        done = subprocess.run(
            [shell.value, "-c", DRIVERS[shell], *(["-"] if shell is Shell.BASH else []), line],
            cwd=folder,
            env={**os.environ, "HOME": str(folder)},
            capture_output=True,
            text=True,
            check=True,
        )
        found = [each.rpartition("=")[2] for each in done.stdout.split()]
        expected = words
        if shell is Shell.BASH:  # which replaces only what follows the last colon
            typed = line.rpartition(" ")[2].rpartition("=")[2]
            expected = [each[typed.rfind(":") + 1 :] for each in words]
        assert (found, done.stderr) == (expected, ""), line


@pytest.mark.parametrize(
    "line", ["fledge ma", "fledge build --platform=linux/am", "fledge inspect plug"]
)
def test_zsh(folder: Path, line: str) -> None:
    (folder / "script").write_text(SCRIPTS[Shell.ZSH])
    subprocess.run(
        ["zsh", "-f", "-c", ZSH, "-", line],
        cwd=folder,
        env={**os.environ, "HOME": str(folder), "TERM": "dumb"},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert LINES[line][0] in (folder / "out").read_text()


@pytest.mark.parametrize("shell", Shell)
def test_the_script_is_one_of_the_shell(fledge: Fledge, folder: Path, shell: Shell) -> None:
    done = fledge("completion", shell.value)
    assert (done.code, done.out, done.err) == (0, SCRIPTS[shell], "")
    assert "To install it" in done.out
    assert shutil.which(shell.value)
    (folder / "script").write_text(done.out)
    subprocess.run([shell.value, "-n", "script"], cwd=folder, check=True)
