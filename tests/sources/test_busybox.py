"""The applets of a busybox, read from the binary without running it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fledge.errors import CorruptError, FledgeError
from fledge.sources import busybox
from fledge.tree import Directory, File, Symlink, Tree
from fledge.tree.applets import MAX_BUSYBOX_SIZE, applets
from fledge.tree.content import Span, hash_file
from fledge.tree.digest import Digest
from fledge.tree.elf import architecture
from tests.support import project
from tests.support.trees import describe

MARK = b"\0BusyBox v1.37.0 (test)\0"


@pytest.fixture
def tree() -> Tree:
    return Tree(mtime_ns=7)


def span(folder: Path, data: bytes) -> Span:
    return hash_file(project.write(folder, "busybox", data))


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b"\0ash\0cat\0sh\0", [b"ash", b"cat", b"sh"]),
        (b"\0[\0[[\0acpid\0\0", [b"[", b"[[", b"acpid"]),
        (b"\0run-parts\0udhcpc6\0x.y_z+\0", [b"run-parts", b"udhcpc6", b"x.y_z+"]),
        (b"\0aa\0bb\0a\0b\0c\0d\0aa\0bb\0", [b"a", b"b", b"c", b"d"]),
        (b"\0a\0b\0b\0c\0d\0", [b"b", b"c", b"d"]),
        (b"\0a\0b\0\0c\0", [b"a", b"b"]),
        (b"\0a\0b\0Not a name\0c\0", [b"a", b"b"]),
        (b"\0a/b\0A\0-\0.\0", []),
        (b"", []),
    ],
)
def test_applets(body: bytes, names: list[bytes]) -> None:
    assert applets(MARK + body) == names


# In Debian 13, the table before the names ends in a space, not in a zero byte.
@pytest.mark.parametrize("before", [b"\xc0\xae ", b"\x11\x33", b"08<", b"\xff"])
def test_applets_right_after_another_table(before: bytes) -> None:
    body = b"\0" + before + b"[\0[[\0acpid\0adjtimex\0"
    assert applets(MARK + body) == [b"[", b"[[", b"acpid", b"adjtimex"]


def test_no_applets_without_busybox() -> None:
    assert applets(b"\0ash\0cat\0sh\0") == []


@pytest.mark.real
@pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox is missing")
def test_applets_of_debian() -> None:
    program = shutil.which("busybox")
    assert program
    listed = subprocess.check_output([program, "--list"]).split()
    assert applets(Path(program).read_bytes()) == listed
    assert len(listed) > 200


@pytest.mark.parametrize(
    ("machine", "name"), [(3, "386"), (62, "amd64"), (183, "arm64"), (999, "ELF machine 999")]
)
def test_install(tmp_path: Path, tree: Tree, machine: int, name: str) -> None:
    binary = span(tmp_path, project.busybox(machine=machine))
    assert busybox.install(tree, binary) == (name, len(project.APPLETS))
    nodes = dict(tree.walk())
    assert list(nodes) == [b"", b"bin", *(b"bin/" + name for name in project.APPLETS)]
    program = nodes.pop(b"bin/busybox")
    assert isinstance(program, File)
    assert (program.mode, program.uid, program.gid, program.mtime_ns) == (0o755, 0, 0, 7)
    assert program.content == binary
    for path in (b"bin/[", b"bin/sh"):
        link = nodes[path]
        assert isinstance(link, Symlink)
        assert (link.target, link.mode, link.mtime_ns) == (b"busybox", 0o777, 7)


def test_install_in_a_merged_usr(tmp_path: Path, tree: Tree) -> None:
    tree.add(b"/usr/bin", Directory(mode=0o700))
    tree.add(b"/bin", Symlink(target=b"usr/bin"))
    tree.add(b"/bin/sh", Symlink(target=b"dash"))
    busybox.install(tree, span(tmp_path, project.busybox()))
    rows = {row.path: row for row in describe(tree)}
    assert rows[b"bin"].data == b"usr/bin"
    assert rows[b"usr/bin"].mode == 0o700
    assert rows[b"usr/bin/sh"].data == b"dash", "a program of the image stays"
    assert rows[b"usr/bin/cat"].data == b"busybox"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an ELF program: it is empty"),
        (b"\x7fELF", "not an ELF program: it is only the beginning of an ELF file"),
        (b"#!/bin/sh\n" + MARK + b"ash\0sh\0", "not an ELF program: it is a script"),
        (project.program(body=b"\0ash\0sh\0"), "no applets"),
        (project.program(body=MARK), "no applets"),
        (Path(sys.executable).read_bytes(), "no applets"),
    ],
    ids=["empty", "short", "script", "no mark", "no names", "python"],
)
def test_no_busybox(tmp_path: Path, tree: Tree, data: bytes, message: str) -> None:
    with pytest.raises(CorruptError, match=message) as caught:
        busybox.install(tree, span(tmp_path, data))
    assert "busybox_url" in caught.value.hint
    assert len(describe(tree)) == 1


def test_too_large(tmp_path: Path, tree: Tree) -> None:
    path = tmp_path / "busybox"
    with path.open("wb") as file:
        file.truncate(MAX_BUSYBOX_SIZE + 1)
    with pytest.raises(CorruptError, match="67108865 bytes: too large"):
        busybox.install(tree, Span(path, 0, MAX_BUSYBOX_SIZE + 1))


def test_only_the_span_counts(tmp_path: Path, tree: Tree) -> None:
    data = project.busybox()
    path = project.write(tmp_path, "archive", b"before" + data + b"\0" + b"a\0b\0c\0d\0e\0f\0g\0")
    digest = Digest.of(data)
    busybox.install(tree, Span(path, len(b"before"), len(data), digest))
    assert tree.get(b"/bin/g") is None


def test_changed_since_it_was_fetched(tmp_path: Path, tree: Tree) -> None:
    binary = span(tmp_path, project.busybox())
    project.write(tmp_path, "busybox", project.busybox(b"evil", b"good"))
    with pytest.raises(CorruptError, match="changed"):
        busybox.install(tree, binary)
    binary.path.unlink()
    with pytest.raises(FledgeError, match="could not be read"):
        busybox.install(tree, binary)


@pytest.mark.parametrize(
    ("machine", "big_endian", "name"),
    [
        (62, False, "amd64"),
        (22, True, "s390x"),
        (21, False, "ppc64le"),
        (21, True, "ppc64"),
        (183, True, "64-bit big-endian arm64"),
        (0x1234, True, "ELF machine 4660"),
    ],
)
def test_architecture(machine: int, big_endian: bool, name: str) -> None:
    assert architecture(project.program(machine, big_endian=big_endian)) == name


@pytest.mark.parametrize("program", [b"", b"\x7fELF", b"MZ" + bytes(30), project.program()[:19]])
def test_no_architecture(program: bytes) -> None:
    assert architecture(program) is None
