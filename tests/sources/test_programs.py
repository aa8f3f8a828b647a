"""Programs that cannot start, because the artifact lacks what they need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fledge as library
from fledge.sources.programs import missing_interpreter
from fledge.tree import File, Symlink, Tree, elf
from tests.support import daemons, project
from tests.support.project import Fledge

DYNAMIC = project.program(
    body=bytes(12) + (64).to_bytes(8, "little") + bytes(14) + b"\x38\0\1\0" + bytes(6)
    # One program header: PT_INTERP, with an offset of 120 and a size of 9.
    + b"\3\0\0\0" + bytes(4) + (120).to_bytes(8, "little") + bytes(16) + b"\x09" + bytes(23)
    + b"/lib/ld.so"[:8] + b"\0"
)  # fmt: skip
INTERPRETER = b"/lib/ld."


def tree_of(**files: bytes) -> Tree:
    tree = Tree(mtime_ns=0)
    for name, data in files.items():
        tree.add(b"/bin/" + name.encode(), File(mode=0o755, mtime_ns=0, content=data))
    return tree


def test_interpreters() -> None:
    assert elf.interpreter(DYNAMIC) == INTERPRETER
    assert elf.interpreter(project.program()) is None
    tree = tree_of(a=DYNAMIC, b=b"#! /bin/a -x\n", c=b"#!/bin/b\n", d=b"#!/bin/d", e=b"", f=b"#!\n")
    assert [missing_interpreter(tree, b"/bin/" + name) for name in (b"a", b"b", b"c")] == [
        INTERPRETER
    ] * 3
    for name in (b"d", b"e", b"f", b"nothing"):
        assert missing_interpreter(tree, b"/bin/" + name) is None
    assert missing_interpreter(tree_of(a=b"#!/bin/sh\n"), b"/bin/a") == b"/bin/sh"
    tree.add(b"/lib", Symlink(target=b"usr/lib", mtime_ns=0))
    tree.add(b"/usr/lib/ld.", File(mode=0o755, mtime_ns=0, content=b"\x7fELF"))
    assert missing_interpreter(tree, b"/bin/c") is None


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_header(data: bytes, length: int) -> None:
    for start in (DYNAMIC[:length] + data, DYNAMIC[:6] + data, data):
        elf.interpreter(start)
        elf.architecture(start)


@pytest.mark.real
def test_a_dynamic_agent(tmp_path: Path, fledge: Fledge) -> None:
    (tmp_path / "main.c").write_text("int main(void) { return 0; }")
    machine = {"x86_64": 62, "aarch64": 183}[os.uname().machine]
    project.make(tmp_path, busybox_binary=project.busybox(machine=machine))
    for options, noted in (("-static",), False), ((), True):
        compiler = ("gcc", *options, "-o", tmp_path / "kestrel", tmp_path / "main.c")
        daemons.run(*compiler)
        for command in ("check", "build"):
            done = fledge(command)
            assert done.code == 0
            assert ("/bin/kestrel needs /lib" in done.err) == noted


def test_a_script_whose_interpreter_is_not_there(tmp_path: Path, fledge: Fledge) -> None:
    project.make(tmp_path)
    project.write(tmp_path, "kestrel", b"#!/usr/bin/python3\n")
    done = fledge("build")
    assert "/bin/kestrel needs /usr/bin/python3, which the artifact lacks" in done.err
    assert library.verify("plugin.cpio.gz").equal
    project.write(tmp_path, "kestrel", b"#!/bin/sh\n")
    assert "lacks" not in fledge("build").err
