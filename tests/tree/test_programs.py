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
from fledge.tree import Directory, File, Symlink, Tree
from fledge.tree.content import DataExtent, Span, Sparse, read_range
from fledge.tree.programs import Context, Problem, find, problems
from tests.support.project import busybox, program

HOST = host_platform().architecture
PROGRAM = Path(os.path.realpath("/bin/cat"))


def host_file(path: Path) -> File:
    return File(mode=path.stat().st_mode & 0o7777, content=Span(path, 0, path.stat().st_size))


@pytest.fixture
def tree() -> Tree:
    """A tree with a dynamic program of this machine and all that it needs."""
    found = Tree(mtime_ns=0)
    said = subprocess.run(["ldd", PROGRAM], capture_output=True, text=True, check=True).stdout
    libraries = re.findall(r"(/\S+) \(0x", said)
    for name in (str(PROGRAM), *libraries):
        found.add(name.encode(), host_file(Path(os.path.realpath(name))))
    folders = "\n".join(str(Path(each).parent) for each in libraries)
    add(found, "/etc/ld.so.conf.d/multiarch.conf", folders.encode(), 0o644)
    return found


def problem(tree: Tree, path: str, architecture: str) -> str | None:
    found = certain(tree, path, Context(architecture))
    return found.text if found else None


def certain(tree: Tree, path: str, context: Context) -> Problem | None:
    return next((each for each in problems(tree, [path], context) if each.is_certain), None)


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
    assert not list(problems(tree, [str(PROGRAM)], Context(HOST)))


def test_a_loader_looks_in_its_own_folder(tree: Tree) -> None:
    """As in images without ld.so.conf, where the loader is a link to where the libraries are."""
    remove(tree, r"multiarch\.conf$")
    loader = Path(remove(tree, r"/ld[-\d.a-z_]*linux[^/]*$"))
    folder = Path(remove(tree, r"/libc\.so\.6$")).parent
    for path in (folder / loader.name, folder / "libc.so.6"):
        tree.add(bytes(path), host_file(Path(os.path.realpath(path))))
    if loader.parent != folder:
        tree.add(bytes(loader), Symlink(target=bytes(folder / loader.name)))
    assert not list(problems(tree, [str(PROGRAM)], Context(HOST)))


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
        (b"#!/bin/sh\t -e \n", None),
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
        found = certain(tree, path, Context("amd64" if path == "/other" else HOST))
        assert found
        assert found.advice == advice


ENV_PATH = {"PATH": "/opt/bin:/usr/bin"}


@pytest.mark.parametrize(
    ("line", "environment", "words"),
    [
        ("/usr/bin/env tool", ENV_PATH, None),
        ("/usr/bin/env gone", ENV_PATH, "env does not find gone in PATH=/opt/bin:/usr/bin"),
        ("/usr/bin/env bash", {}, "bash, which it starts, cannot run: /bin/bash is busybox, which"),
        ("/usr/bin/env tool", {}, "env does not find tool in PATH=/usr/local/bin:/bin:/usr/bin"),
        ("/usr/bin/env tool -x", ENV_PATH, "env does not find tool -x in PATH="),
        ("/usr/bin/env -S tool -x", ENV_PATH, None),
        ("/usr/bin/env -vS A=1 -u B tool", ENV_PATH, None),
        ("/usr/bin/env -S -i tool", ENV_PATH, "env does not find tool in PATH=/usr/local/bin:"),
        ("/usr/bin/env -iS tool", ENV_PATH, "env does not find tool in PATH=/usr/local/bin:"),
        ("/usr/bin/env -S -u PATH tool", ENV_PATH, "env does not find tool in PATH=/usr/local"),
        ("/usr/bin/env --split-string=PATH=/opt/bin tool", {}, None),
        ("/usr/bin/env -S --unset=A -- gone", ENV_PATH, "env does not find gone in PATH="),
        ("/usr/bin/env -S $TOOL", ENV_PATH, None),
        ("/usr/bin/env -S 'tool", ENV_PATH, None),
        ("/usr/bin/env --odd gone", ENV_PATH, None),
        ("/usr/bin/env /opt/bin/tool", {}, None),
        ("/usr/bin/env /opt/gone", {}, "env does not find /opt/gone"),
        (
            "/usr/bin/env lost",
            ENV_PATH,
            "lost, which it starts, cannot run: /opt/bin/lost needs /x",
        ),
        ("/bin/alias gone", ENV_PATH, "env does not find gone in PATH="),
        ("/bin/busybox sh", {}, None),
        ("/bin/busybox", {}, "/bin/busybox is busybox, which has no applet app"),
        ("/bin/busybox bash", {}, "/bin/busybox is busybox, which has no applet bash"),
        ("/bin/busybox sh -e", {}, "/bin/busybox is busybox, which has no applet sh -e"),
        ("/bin/sh -e", {}, None),
        ("/bin/bash", {}, "/bin/bash is busybox, which has no applet bash"),
        ("/bin/hard", {}, "/bin/hard is busybox, which has no applet hard"),
        ("/bin/env sh", {"PATH": "/nowhere"}, None),
        ("/bin/env bash2", ENV_PATH, "env does not find bash2 in PATH=/opt/bin:/usr/bin"),
        ("/bin/env -S sh -e", ENV_PATH, "/bin/env is that of busybox, which has no option -S"),
    ],
)
def test_a_script_that_others_start(line: str, environment: dict[str, str], words: str) -> None:
    tree = Tree(mtime_ns=0)
    add(tree, "/usr/bin/env", program())
    tree.add(b"/bin/alias", Symlink(target=b"../usr/bin/env"))
    add(tree, "/opt/bin/tool", program())
    add(tree, "/opt/bin/lost", b"#!/x\n")
    add(tree, "/bin/busybox", busybox(b"env", b"sh"))
    for name in ("sh", "env", "bash"):
        tree.add(f"/bin/{name}".encode(), Symlink(target=b"busybox"))
    shared = tree.get(b"/bin/busybox")
    assert shared
    tree.add(b"/bin/hard", shared)
    add(tree, "/app", f"#!{line}\n".encode())
    found = certain(tree, "/app", Context("amd64", environment))
    needs = f"/app needs {line.split(maxsplit=1)[0]}, but "
    assert (found and found.text[: len(needs + (words or ""))]) == (words and needs + words)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["/bin/busybox", "sh"], None),
        (["/bin/busybox", "gone"], "/bin/busybox is busybox, which has no applet gone"),
        (["/bin/busybox", "--list"], None),
        (["/bin/env", "A=1", "gone", "x"], "env does not find gone in PATH="),
        (["/bin/env", "A=1", "sh", "x"], None),
        (["/bin/env"], None),
    ],
)
def test_a_command_that_starts_another(command: list[str], words: str | None) -> None:
    tree = Tree(mtime_ns=0)
    add(tree, "/bin/busybox", busybox(b"env", b"sh"))
    tree.add(b"/bin/env", Symlink(target=b"busybox"))
    found = next(problems(tree, command, Context()), None)
    assert (found and found.text[: len(words or "")]) == words


@pytest.mark.parametrize(
    ("files", "line", "advice"),
    [
        ("/usr/bin/env", "/usr/bin/env tool", "Add tool, with what it needs, to a folder of that"),
        ("/usr/bin/env /sbin/tool", "/usr/bin/env tool", "Begin the script with #!/sbin/tool."),
        ("/usr/bin/env /bin/tool", "/usr/bin/env tool -x", "Linux hands over all that follows env"),
        ("/bin/tool", "/usr/bin/env tool", "Begin it with #!/bin/tool."),
        ("/bin/x", "/usr/bin/env tool", "Add /usr/bin/env and tool with [mappings]."),
        (
            "/bin/sh",
            "/bin/bash",
            "Add /bin/bash with [mappings], or use an interpreter that is there, such as #!/bin/sh",
        ),
    ],
)
def test_what_to_do_leads_to_no_other_problem(files: str, line: str, advice: str) -> None:
    tree = Tree(mtime_ns=0)
    for path in files.split():
        add(tree, path, program())
    add(tree, "/app", f"#!{line}\n".encode())
    found = certain(tree, "/app", Context())
    assert found
    assert found.advice.startswith(advice)


def test_where_env_looks_without_a_path(tree: Tree) -> None:
    """As /usr/bin/env of this machine does."""
    env = Path(os.path.realpath("/usr/bin/env"))
    tree.add(b"/usr/bin/env", host_file(env))
    add(tree, "/usr/local/bin/tool", program())
    add(tree, "/app", b"#!/usr/bin/env tool\n")
    assert problem(tree, "/app", "") == (
        "/app needs /usr/bin/env, but env does not find tool in PATH=/bin:/usr/bin"
    )
    said = subprocess.run(
        ["/usr/bin/env", "-i", "/usr/bin/env", "/bin/sh", "-c", "command -v /bin/sh"], check=False
    )
    assert said.returncode == 0


def test_a_program_that_is_cut_short() -> None:
    whole = PROGRAM.read_bytes()
    tree = Tree(mtime_ns=0)
    add(tree, "/app", whole[:20_000])
    said = problem(tree, "/app", HOST)
    assert said
    assert said.startswith("/app is a damaged program: it is cut short: 20000 bytes of at least ")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"x", "which is damaged: it is not an ELF file"),
        (PROGRAM.read_bytes()[:5000], "which is damaged: it is cut short"),
        (program(8, big_endian=True), f"which is for .*, not for {HOST}"),
    ],
)
def test_a_loader_or_library_that_is_another(tree: Tree, content: bytes, words: str) -> None:
    library = remove(tree, r"/libc\.so\.6$")
    add(tree, library, content)
    said = problem(tree, str(PROGRAM), HOST)
    what = words.replace("which", re.escape(library))
    assert said
    assert re.match(rf"{PROGRAM} needs libc\.so\.6, but {what}", said)
    loader = remove(tree, r"/ld[-\d.a-z_]*linux[^/]*$")
    add(tree, loader, content)
    said = problem(tree, str(PROGRAM), HOST)
    assert said
    assert re.match(rf"{PROGRAM} needs the loader {loader}, {words}", said)


def test_a_library_where_no_loader_looks(tree: Tree) -> None:
    library = remove(tree, r"/libc\.so\.6$")
    libc = host_file(Path(os.path.realpath(library)))
    tree.add(b"/opt/lib/libc.so.6", libc)
    [found] = problems(tree, [str(PROGRAM)], Context(HOST))
    assert not found.is_certain
    assert found.text == (
        f"{PROGRAM} needs libc.so.6, which is at /opt/lib/libc.so.6, where its loader looks only"
        " if it is told to"
    )
    told = Context(HOST, {"LD_LIBRARY_PATH": "/opt/lib"})
    assert not list(problems(tree, [str(PROGRAM)], told))


def test_all_that_is_missing_is_in_the_advice(tree: Tree) -> None:
    loader = remove(tree, r"/ld[-\d.a-z_]*linux[^/]*$")
    remove(tree, r"/libc\.so\.6$")
    found = certain(tree, str(PROGRAM), Context(HOST))
    assert found
    assert found.text == f"{PROGRAM} needs the loader {loader}, which is missing"
    assert found.advice == (
        f"Add {loader} and libc.so.6 with [mappings], or link the program statically."
    )


def test_a_program_of_32_bits_needs_an_option_of_the_kernel() -> None:
    tree = Tree(mtime_ns=0)
    add(tree, "/app", program(3))
    [found] = problems(tree, ["/app"], Context("amd64"))
    assert (found.text, found.option) == ("/app is for 386, not for amd64", "IA32_EMULATION")


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
