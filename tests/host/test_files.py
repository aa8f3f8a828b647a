"""Outputs that appear complete or not at all."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fledge.errors import ConfigError, FledgeError, HostError
from fledge.host.files import NewFile, check_output, create, replacing, replacing_together
from fledge.host.signals import LateInterrupt
from tests.support.rights import without_rights


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with access for everybody."""
    tmp_path.chmod(0o777)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["out", "n" * 255, "new\nline", "\udcff"])
def test_new_and_old_file(tmp_path: Path, name: str) -> None:
    output = tmp_path / name
    for data in (b"first", b"second"):
        with replacing(output) as file:
            file.write(data)
            assert names(tmp_path) != [name]
        assert output.read_bytes() == data
        assert names(tmp_path) == [name]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit, FledgeError])
def test_exception_leaves_what_was(tmp_path: Path, error: type[BaseException]) -> None:
    output = tmp_path / "out"
    for before in ([], ["out"]):
        with pytest.raises(error), replacing(output) as file:
            file.write(b"half")
            raise error("stop")
        assert names(tmp_path) == before
        output.write_bytes(b"old")
    assert output.read_bytes() == b"old"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0, 0o666)])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    output = tmp_path / "out"
    before = os.umask(umask)
    try:
        with replacing(output):
            pass
    finally:
        os.umask(before)
    assert output.stat().st_mode & 0o7777 == mode


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_an_open_file_of_a_process_is_no_place(folder: Path, name: str) -> None:
    """/dev/stdout is a link, and provenance beside it would be in /dev."""
    (folder / "link").symlink_to("/proc/self/fd/1")
    with pytest.raises(ConfigError, match="an open file of a process"):
        check_output(Path(name))


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_filesystem_that_cannot_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """vboxsf and old cifs say EINVAL for folders."""

    def refuse(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with replacing(tmp_path / "out") as file:
        file.write(b"data")
    create(tmp_path / "key", b"data", 0o600)
    assert names(tmp_path) == ["key", "out"]
    code = errno.EIO
    with pytest.raises(HostError), replacing(tmp_path / "other") as file:
        file.write(b"data")
    assert names(tmp_path) == ["key", "out"]


def test_reader_of_the_old_file_keeps_it(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.write_bytes(b"old")
    with output.open("rb") as reader:
        with replacing(output) as file:
            file.write(b"new")
        assert reader.read() == b"old"


def test_last_of_two_at_once_wins(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with replacing(output) as first, replacing(output) as second:
        first.write(b"first")
        second.write(b"second")
    assert output.read_bytes() == b"first"
    assert names(tmp_path) == ["out"]


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small tmpfs")
def test_full_disk(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=True)
    try:
        output = tmp_path / "out"
        output.write_bytes(b"old")
        no_space = pytest.raises(FledgeError, match="no space left on device")
        with no_space as caught, replacing(output) as file:
            file.write(bytes(1 << 20))
        assert caught.value.exit_code == 1
        assert str(output) in caught.value.message
        assert f"Free some space in {tmp_path}, or choose another" in caught.value.hint
        assert output.read_bytes() == b"old"
        assert names(tmp_path) == ["out"]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_quota(tmp_path: Path) -> None:
    with pytest.raises(FledgeError) as caught, replacing(tmp_path / "out"):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    assert "Free some space" in caught.value.hint


def test_file_too_large_for_the_host(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        too_large = pytest.raises(HostError, match="out could not be written: file too large")
        with too_large, replacing(tmp_path / "out") as file:
            file.write(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("output", "error"),
    [("missing/out", ConfigError), ("file/out", ConfigError), ("n" * 256, HostError)],
)
def test_impossible_places(folder: Path, output: str, error: type[FledgeError]) -> None:
    (folder / "file").touch()
    with pytest.raises(error) as caught:
        check_output(Path(output))
    assert "with -o." in caught.value.hint
    with pytest.raises(HostError, match="could not be written"), replacing(Path(output)) as file:
        file.write(b"new")
    assert names(folder) == ["file"]


def test_good_places(folder: Path) -> None:
    (folder / "old").touch()
    (folder / "link").symlink_to("old")
    (folder / "dangling").symlink_to("new")
    for output in ("new", "./new", "old", "link", "dangling", "../" + folder.name + "/new"):
        check_output(Path(output))
    assert names(folder) == ["dangling", "link", "old"]


@pytest.mark.parametrize("kind", ["folder", "fifo", "device", "link to a device"])
def test_only_files_are_replaced(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "out"
    if kind == "folder":
        output.mkdir()
    elif kind == "fifo":
        os.mkfifo(output)
    elif kind == "device":
        output = Path("/dev/null")
    else:
        output.symlink_to("/dev/null")
    with pytest.raises(ConfigError, match=f"{output} is ") as caught:
        check_output(output)
    assert "with -o." in caught.value.hint


def test_unwritable_folder(folder: Path) -> None:
    (folder / "closed").mkdir()
    (folder / "closed").chmod(0o555)
    output = Path("closed/out")
    with without_rights():
        with pytest.raises(HostError, match=r"you may not write to .*closed") as caught:
            check_output(output)
        refused = pytest.raises(HostError, match="out could not be written: permission denied")
        with refused, replacing(output):
            pass
    assert caught.value.exit_code == 5
    assert "with -o." in caught.value.hint


def test_folder_that_cannot_be_searched(folder: Path) -> None:
    (folder / "closed").mkdir(0)
    with without_rights(), pytest.raises(FledgeError) as caught:
        check_output(Path("closed/sub/out"))
    assert "with -o." in caught.value.hint


def test_folder_that_can_be_written_but_not_listed(folder: Path) -> None:
    (folder / "blind").mkdir()
    (folder / "blind").chmod(0o333)
    with without_rights():
        check_output(Path("blind/out"))
        with replacing(Path("blind/out")) as file:
            file.write(b"new")
    (folder / "blind").chmod(0o777)
    assert (folder / "blind/out").read_bytes() == b"new"
    assert names(folder / "blind") == ["out"]


@pytest.mark.parametrize("shared", [False, True])
def test_a_symlink_is_replaced_and_never_followed(tmp_path: Path, shared: bool) -> None:
    folder, secret = tmp_path / "folder", tmp_path / "secret"
    folder.mkdir()
    folder.chmod(0o1777 if shared else 0o755)
    secret.write_bytes(b"secret")
    link = folder / "out"
    link.symlink_to(secret)
    if shared and os.geteuid() == 0:
        os.lchown(link, 65534, 65534)
    with replacing(link) as file:
        file.write(b"new")
    assert not link.is_symlink()
    assert link.read_bytes() == b"new"
    assert secret.read_bytes() == b"secret"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of another user")
def test_nobody_else_decides_who_may_write_to_the_output(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.touch()
    output.chmod(0o666)
    os.chown(output, 65534, 65534)
    with replacing(output):
        pass
    assert output.stat().st_mode & 0o7777 == 0o644
    assert output.stat().st_uid == 0


def test_a_file_that_was_planted_for_the_new_one_is_an_error(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    with (
        pytest.raises(HostError, match="could not be written"),
        replacing_together(tmp_path / "out") as [new],
    ):
        os.unlink(new.name, dir_fd=new.folder)
        os.symlink(secret, new.name, dir_fd=new.folder)
        new.open()
    assert secret.read_bytes() == b"secret"
    assert names(tmp_path) == ["secret"]


def write(new: NewFile, data: bytes) -> None:
    with new.open() as file:
        file.write(data)


def test_several_files_are_replaced_together(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"old")
    with replacing_together(one, two) as [first, second]:
        write(first, b"1")
        write(second, b"2")
        assert one.read_bytes() == b"old"
        assert not two.exists()
    assert (one.read_bytes(), two.read_bytes()) == (b"1", b"2")
    assert names(tmp_path) == ["one", "two"]
    with pytest.raises(ZeroDivisionError), replacing_together(one, two) as [first, second]:
        write(first, b"3")
        raise ZeroDivisionError
    assert (one.read_bytes(), two.read_bytes()) == (b"1", b"2")
    assert names(tmp_path) == ["one", "two"]


def test_a_signal_between_the_two_comes_after_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    replace = os.replace

    def interrupted(*arguments: Any, **more: Any) -> None:
        replace(*arguments, **more)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(LateInterrupt) as caught, replacing_together(one, two) as [first, second]:
        write(first, b"1")
        write(second, b"2")
    assert caught.value.output == one
    assert (one.read_bytes(), two.read_bytes()) == (b"1", b"2")
    assert names(tmp_path) == ["one", "two"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_if_only_one_could_be_replaced_that_is_said(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    two.mkdir()
    half_done = pytest.raises(HostError, match=r"one is new, but .*two could not be written")
    with half_done, replacing_together(one, two):
        pass
    assert names(tmp_path) == ["one", "two"]


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755])
def test_the_permissions_of_the_old_file_stay(tmp_path: Path, mode: int) -> None:
    output = tmp_path / "out"
    output.touch()
    output.chmod(mode)
    with replacing(output) as file:
        file.write(b"new")
    assert output.stat().st_mode & 0o7777 == mode


def test_a_file_that_must_not_exist(folder: Path) -> None:
    umask = os.umask(0o022)
    try:
        create(Path("secret"), b"one", 0o600)
        create(Path("public"), b"two", 0o666)
    finally:
        os.umask(umask)
    assert Path("secret").read_bytes() == b"one"
    assert [Path(name).stat().st_mode & 0o777 for name in ("secret", "public")] == [0o600, 0o644]
    Path("link").symlink_to("nowhere")
    for name in ("secret", "link"):
        with pytest.raises(ConfigError, match=f"{name} exists, and is not overwritten"):
            create(Path(name), b"three", 0o600)
    assert Path("secret").read_bytes() == b"one"
    with pytest.raises(HostError, match="no such file or folder"):
        create(Path("missing/secret"), b"", 0o600)


def test_a_new_file_that_cannot_be_written_is_removed(folder: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(HostError, match="file too large"):
            create(Path("new"), bytes(2000), 0o600)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(folder) == []
