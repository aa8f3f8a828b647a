"""Programs that cannot start, because the artifact lacks what they need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import fledge as library
from tests.support import daemons, project
from tests.support.project import Fledge


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
            assert ("/bin/kestrel needs the loader /lib" in done.err) == noted


def test_a_script_whose_interpreter_is_not_there(tmp_path: Path, fledge: Fledge) -> None:
    project.make(tmp_path)
    project.write(tmp_path, "kestrel", b"#!/usr/bin/python3\n")
    done = fledge("build")
    assert "/bin/kestrel needs /usr/bin/python3, but /usr/bin/python3 does not exist" in done.err
    assert library.verify("plugin.cpio.gz").equal
    project.write(tmp_path, "kestrel", b"#!/bin/sh\n")
    assert "cannot run" not in fledge("build").err
