"""Programs of this machine and of hand-made trees, and what keeps them from running."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.oci.manifest import host_platform
from fledge.tree import Directory, File, Symlink, Tree, programs
from fledge.tree.content import DataExtent, Span, Sparse, read_range
from fledge.tree.programs import find
from tests.support.project import program

HOST = host_platform().architecture
PROGRAM = Path(os.path.realpath("/bin/cat"))


def host_file(path: Path) -> File:
    return File(mode=path.stat().st_mode & 0o7777, content=Span(path, 0, path.stat().st_size))


@pytest.fixture
def tree() -> Tree:
    """A tree with a dynamic program of this machine and all that it needs."""
    found = Tree(mtime_ns=0)
    said = subprocess.run(["ldd", PROGRAM], capture_output=True, text=True, check=True).stdout
    for name in (str(PROGRAM), *re.findall(r"(/\S+) \(0x", said)):
        found.add(name.encode(), host_file(Path(os.path.realpath(name))))
    return found


def problem(tree: Tree, path: str, architecture: str) -> str | None:
    found = programs.problem(tree, path, architecture)
    return found.text if found else None


def add(tree: Tree, path: str, content: bytes, mode: int = 0o755) -> None:
    tree.add(path.encode(), File(mode=mode, content=content))


def remove(tree: Tree, pattern: str) -> str:
    """Remove the only path that matches; return it."""
    [path] = [each for each, _ in tree.walk() if re.search(pattern, os.fsdecode(each))]
    folder, _, name = path.rpartition(b"/")
    parent = tree.get(folder)
    assert isinstance(parent, Directory)
    del parent.children[name]
    return "/" + os.fsdecode(path)


def test_a_program_with_all_it_needs(tree: Tree) -> None:
    assert problem(tree, str(PROGRAM), HOST) is None


def test_a_loader_that_is_missing(tree: Tree) -> None:
    loader = remove(tree, r"/ld[-\d.a-z_]*linux[^/]*$")
    assert problem(tree, str(PROGRAM), HOST) == (
        f"{PROGRAM} needs the loader {loader}, which is missing"
    )


def test_a_library_that_is_missing(tree: Tree) -> None:
    library = remove(tree, r"/libc\.so\.6$")
    name = library.rpartition("/")[2]
    assert problem(tree, str(PROGRAM), HOST) == f"{PROGRAM} needs {name}, which is missing"


def test_a_library_in_a_folder_of_ld_so_conf(tree: Tree) -> None:
    library = remove(tree, r"/libc\.so\.6$")
    tree.add(b"/opt/lib/libc.so.6", host_file(Path(os.path.realpath(library))))
    add(tree, "/etc/ld.so.conf.d/opt.conf", b"# more\n/opt/lib\n", 0o644)
    assert problem(tree, str(PROGRAM), HOST) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"#!/bin/sh\n", None),
        (b"#! /usr/bin/env python3\n", "/app needs /usr/bin/env, but /usr/bin/env does not exist"),
        (
            b"#!/bin/sh\r\necho\r\n",
            "the first line of /app ends with a carriage return, as Windows writes it: Linux runs"
            " /bin/sh\\r",
        ),
        (
            b"#! /bin/busybox sh\r\n",
            "the first line of /app ends with a carriage return, as Windows writes it: Linux runs"
            " /bin/busybox sh\\r",
        ),
        (b"#!\n", "the first line of /app names no interpreter"),
        (b"#!/app\n", "/app is a script of a script, more than 5 times"),
        (b"#!/" + b"x" * 300, "the first line of /app is longer than the 256 bytes that Linux"),
        (b"echo hello\n", "/app is neither an ELF program nor a script that begins with #!"),
        (b"", "/app is neither an ELF program nor a script that begins with #!"),
        (program(183)[:40], "/app is a damaged program: it is cut short"),
        (program(183)[:54].ljust(64, b"\0"), "/app is a damaged program: it has 0 segments of 0"),
    ],
)
def test_scripts_and_others(content: bytes, words: str | None) -> None:
    tree = Tree(mtime_ns=0)
    add(tree, "/bin/busybox", program())
    tree.add(b"/bin/sh", Symlink(target=b"busybox"))
    add(tree, "/app", content)
    said = problem(tree, "/app", "amd64")
    assert said == words or (words and said and words in said), said


def test_another_architecture() -> None:
    tree = Tree(mtime_ns=0)
    add(tree, "/app", program(183))
    assert problem(tree, "/app", "arm64") is None
    assert problem(tree, "/app", "amd64") == "/app is for arm64, not for amd64"


def test_what_to_do(tree: Tree) -> None:
    add(tree, "/other", program(183))
    add(tree, "/windows", b"#!/bin/sh\r\n")
    add(tree, "/script", b"#!/bin/none\n")
    library = remove(tree, r"/libc\.so\.6$").rpartition("/")[2]
    for path, advice in {
        "/other": "Use one for amd64.",
        "/windows": "Save it with the line ends of Unix (dos2unix).",
        "/script": "Add /bin/none with [mappings].",
        str(PROGRAM): f"Add {library} with [mappings], or link the program statically.",
    }.items():
        found = programs.problem(tree, path, "amd64" if path == "/other" else HOST)
        assert found
        assert found.advice == advice


def test_nodes_that_are_no_programs() -> None:
    tree = Tree(mtime_ns=0)
    add(tree, "/plain", b"#!/bin/sh\n", 0o644)
    tree.add(b"/folder", Directory(mode=0o755))
    tree.add(b"/dangling", Symlink(target=b"nowhere"))
    assert problem(tree, "/plain", HOST) == "/plain is not executable"
    assert problem(tree, "/folder", HOST) == "/folder is not a file"
    assert problem(tree, "/dangling", HOST) == "/dangling does not exist"


@pytest.mark.parametrize(
    ("name", "path", "folder", "found"),
    [
        ("app", "", "/", "/usr/bin/app"),
        ("app", "/opt/bin:/usr/bin", "/", "/opt/bin/app"),
        ("app", "bin", "/opt", "/opt/bin/app"),
        ("./app", "/usr/bin", "/opt/bin", "/opt/bin/app"),
        ("bin/app", "", "/opt/", "/opt/bin/app"),
        ("/usr/bin/app", "", "/opt", "/usr/bin/app"),
        ("../bin/app", "", "/opt/lib", "/opt/lib/../bin/app"),
        ("plain", "/opt/bin", "/", None),
        ("app", "/nowhere", "/", None),
        ("", "", "/", None),
    ],
)
def test_where_a_program_is(name: str, path: str, folder: str, found: str | None) -> None:
    tree = Tree(mtime_ns=0)
    for each in ("/usr/bin/app", "/opt/bin/app"):
        add(tree, each, b"#!/bin/sh\n")
    add(tree, "/opt/bin/plain", b"", 0o644)
    tree.add(b"/opt/lib", Directory(mode=0o755))
    assert find(tree, name, path, folder) == found


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damage_is_no_crash(data: st.DataObject) -> None:
    whole = bytearray(PROGRAM.read_bytes()[:20_000])
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(16, 1200))
        whole[at] = data.draw(st.integers(0, 255))
    tree = Tree(mtime_ns=0)
    add(tree, "/app", bytes(whole))
    said = problem(tree, "/app", HOST)  # which may find nothing wrong, but raises nothing
    assert said is None or said.startswith("/app ")


@settings(deadline=None)
@given(
    offset=st.integers(0, 30),
    size=st.integers(0, 30),
    holes=st.sampled_from([(), ((0, 0, 4),), ((3, 1, 5), (12, 7, 3))]),
)
def test_a_range_of_a_content(
    tmp_path_factory: pytest.TempPathFactory,
    offset: int,
    size: int,
    holes: tuple[tuple[int, int, int], ...],
) -> None:
    path = tmp_path_factory.getbasetemp() / "range"
    path.write_bytes(bytes(range(65, 65 + 20)))
    whole = bytearray(20)
    for start, source, length in holes:
        whole[start : start + length] = path.read_bytes()[source : source + length]
    sparse = Sparse(20, path, tuple(DataExtent(*each) for each in holes))
    assert read_range(sparse, offset, size) == bytes(whole)[offset : offset + size]
    plain = path.read_bytes()
    assert read_range(plain, offset, size) == plain[offset : offset + size]
    assert read_range(Span(path, 2, 10), offset, size) == plain[2:12][offset : offset + size]
