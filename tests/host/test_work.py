"""Private folders, and that those of killed processes are removed."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fledge.host import work
from fledge.host.work import private_folder, remove_abandoned, temporary_folder

KILLED = """
import os, signal, sys
from fledge.host.work import private_folder
with private_folder(os.open(sys.argv[1], os.O_PATH)) as folder:
    with folder.create("file") as file:
        file.write(b"half")
    print("ready", flush=True)
    signal.pause()
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[int]:
    descriptor = work.open_folder(tmp_path)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_nobody_else_enters(tmp_path: Path, parent: int, umask: int) -> None:
    before = os.umask(umask)
    try:
        with private_folder(parent) as folder:
            status = (tmp_path / folder.name).stat()
    finally:
        os.umask(before)
    assert status.st_mode & 0o7777 == 0o700
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("depth", [0, 1, 3000])
def test_what_is_in_it_goes_however_deep(tmp_path: Path, parent: int, depth: int) -> None:
    with private_folder(parent) as folder:
        place = folder.descriptor
        for _ in range(depth):
            for name in ("file", "other"):
                os.close(os.open(name, os.O_CREAT, dir_fd=place))
            os.symlink("/", "link", dir_fd=place)
            os.mkdir("folder", dir_fd=place)
            inner = os.open("folder", os.O_RDONLY, dir_fd=place)
            if place != folder.descriptor:
                os.close(place)
            place = inner
    assert os.listdir(tmp_path) == []


def test_a_signal_while_it_is_removed_comes_after(
    tmp_path: Path, parent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rmdir = os.rmdir

    def interrupted(*arguments: str, dir_fd: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        rmdir(*arguments, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", interrupted)
    with pytest.raises(KeyboardInterrupt), private_folder(parent):
        pass
    assert os.listdir(tmp_path) == []


def test_the_folder_of_a_killed_process_goes_and_no_other(tmp_path: Path, parent: int) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    (tmp_path / ".fledge-mine").write_bytes(b"not a folder")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            assert remove_abandoned(parent) == 0
            assert len(os.listdir(tmp_path)) == 2
        finally:
            process.kill()
    with private_folder(parent):
        assert remove_abandoned(parent) == 1
        assert len(os.listdir(tmp_path)) == 2
    assert os.listdir(tmp_path) == [".fledge-mine"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of another user")
def test_a_folder_that_cannot_be_removed_hides_no_error(tmp_path: Path, parent: int) -> None:
    """To list a folder takes a descriptor; a build of many layers may have used all of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        with pytest.raises(ValueError, match="of the work"), private_folder(parent):
            free = os.dup(parent)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
            raise ValueError("of the work")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert remove_abandoned(parent) == 1
    assert not list(tmp_path.iterdir())


def test_the_folder_of_another_user_stays(tmp_path: Path, parent: int) -> None:
    planted = tmp_path / ".fledge-planted"
    (planted / "data").mkdir(parents=True)
    os.chown(planted, 65534, 65534)
    (tmp_path / ".fledge-link").symlink_to(tmp_path)
    assert remove_abandoned(parent) == 0
    assert (planted / "data").is_dir()


def test_temporary_folders_of_killed_processes_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / ".fledge-dead").mkdir()
    with temporary_folder() as (path, folder):
        assert os.listdir(tmp_path) == [folder.name]
        assert os.path.samestat(path.stat(), os.fstat(folder.descriptor))
    assert os.listdir(tmp_path) == []
