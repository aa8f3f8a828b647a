"""Standard output and error that are closed, full, a pipe without a reader, or ASCII."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import project
from tests.support.project import Fledge

COMMANDS = (
    ("build",),
    ("build", "--json"),
    ("check",),
    ("version",),
    ("--help",),
    ("build", "--help"),
    ("schema",),
    ("lock",),
    ("cache",),
    ("inspect", "old"),
    ("inspect", "old", "/init"),
    ("inspect", "old", "--json"),
    ("diff", "old", "old"),
)


@pytest.fixture
def folder(fledge: Fledge, tmp_path: Path) -> Path:
    """A project, and an artifact named ``old``."""
    project.make(tmp_path)
    assert fledge("build", "-q", "-o", "old").code == 0
    return tmp_path


def shell(folder: Path, redirection: str, *arguments: str, **environment: str) -> tuple[int, str]:
    """The exit code of the command with a redirection, and what it says on standard error."""
    script = f'"$@" {redirection}'
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script, "sh", sys.executable, "-m", "fledge", *arguments],
        cwd=folder,
        capture_output=True,
        env=os.environ | environment,
        check=False,
    )
    return done.returncode, done.stderr.decode()


@pytest.mark.slow
@pytest.mark.parametrize("arguments", COMMANDS)
def test_full(folder: Path, arguments: tuple[str, ...]) -> None:
    code, err = shell(folder, ">/dev/full", *arguments)
    assert code == 1
    assert err.endswith("error: standard output could not be written: no space left on device\n")
    assert "Traceback" not in err
    assert "internal" not in err


@pytest.mark.slow
@pytest.mark.parametrize("arguments", COMMANDS)
def test_no_reader(folder: Path, arguments: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "fledge", *arguments]
    done = subprocess.run(
        command, cwd=folder, stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert done.returncode == -signal.SIGPIPE
    assert "rror" not in done.stderr
    assert (folder / "plugin.cpio.gz").exists() == (
        arguments[0] == "build" and "--help" not in arguments
    )


@pytest.mark.slow
@pytest.mark.parametrize("arguments", COMMANDS)
@pytest.mark.parametrize("redirection", [">&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_closed(folder: Path, redirection: str, arguments: tuple[str, ...]) -> None:
    code, err = shell(folder, redirection, *arguments)
    assert code == 0
    assert (err == "") or "2>" not in redirection


@pytest.mark.slow
def test_ascii(folder: Path) -> None:
    (folder / "payload/site/index.html").write_bytes(b"other")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code, err = shell(folder, ">out", "build", "-o", "new", **ascii_only)
    assert code == 0
    assert "  ok write" in err
    code, err = shell(folder, ">out", "diff", "old", "new", **ascii_only)
    assert (code, err) == (1, "")
    assert "size 15 -> 5" in (folder / "out").read_text("ascii")


@pytest.mark.slow
def test_a_path_that_is_no_text(folder: Path) -> None:
    """Scripts get the bytes of the path."""
    name = os.fsdecode(b"caf\xe9.gz")
    assert shell(folder, ">out", "build", "-o", name)[0] == 0
    assert (folder / "out").read_bytes() == b"caf\xe9.gz\n"


@pytest.mark.parametrize("output", ["", "-", "new/"])
def test_outputs_that_are_no_file(fledge: Fledge, tmp_path: Path, output: str) -> None:
    project.make(tmp_path)
    before = sorted(tmp_path.iterdir())
    done = fledge("build", "-o", output)
    assert (done.code, done.out) == (2, "")
    assert "name a file" in done.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("path", ["", "/", ".", "fledge.toml/x", "x" * 300])
@pytest.mark.parametrize(
    "command", ["build -c", "check -c", "lock -c", "verify", "inspect", "diff"]
)
def test_odd_paths(fledge: Fledge, tmp_path: Path, command: str, path: str) -> None:
    project.make(tmp_path)
    done = fledge(*command.split(), path, *(["kestrel"] if command == "diff" else []))
    assert done.code == 2
    assert "internal error" not in done.err
