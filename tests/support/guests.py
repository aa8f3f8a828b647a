"""Artifacts that are booted by `fledge boot`, and what is in them."""

from __future__ import annotations

import gzip
import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from fledge.cpio import newc
from fledge.operations.boot import Console, Gate, Machine, boot
from fledge.sources.init import install
from fledge.tree import File, Tree, elf
from fledge.tree.content import Span
from tests.support import tars, vm

MANIFEST = """
[manifest]
name = "hello"
version = "1"
[manifest.workload]
base_url = "http://127.0.0.1:80/"
"""
"""A plugin manifest, up to the entrypoint."""


def free_port() -> int:
    """Return a TCP port of this machine that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def host_busybox() -> bytes:
    busybox = Path(shutil.which("busybox") or "")
    if not busybox.is_file():
        pytest.skip("no busybox: run scripts/test-tools")
    return busybox.read_bytes()


def run(
    artifact: Path,
    machine: Machine | None = None,
    expect: Sequence[str] = (),
    probe: str | None = None,
) -> str:
    """Boot an artifact until the gate passes, and return what the console said."""
    shown: list[bytes] = []
    boot(
        artifact,
        machine=machine or Machine(kernel=vm.kernel()),
        gate=Gate(expect=expect, probe=probe, timeout=240),
        console=Console(shown.append),
    )
    return b"".join(shown).decode(errors="replace").replace("\r\n", "\n")


def initramfs(path: Path, init: bytes | None, *, busybox: bytes | None = None) -> Path:
    """Write an initramfs by hand, which a build would refuse."""
    tree = Tree(mtime_ns=0)
    install(tree, init)
    tree.add(b"bin/busybox", File(mode=0o755, content=busybox or host_busybox()))
    path.write_bytes(gzip.compress(b"".join(newc.write(tree))))
    return path


def debian_files() -> list[tars.Entry]:
    """Return this machine's shell and what it needs, as a usr-merged image has them."""
    shell = Path("/bin/dash").resolve()
    size = shell.stat().st_size
    loader = Path(os.fsdecode(elf.read(Span(shell, 0, size)).loader))
    [libc] = Path("/usr/lib").glob(f"{os.uname().machine}-linux-gnu/libc.so.6")
    real = {"usr/bin/dash": shell, str(libc)[1:]: libc}
    links = {name: f"usr/{name}" for name in ("bin", "sbin", "lib", "lib64")}
    usr_loader = f"usr{loader}"
    real[usr_loader] = loader
    return [
        *(tars.folder(f"usr/{name}") for name in ("bin", "sbin", "lib", "lib64")),
        *(tars.symlink(name, target) for name, target in links.items()),
        *(tars.file(name, file.read_bytes(), mode=0o755) for name, file in real.items()),
        tars.symlink("usr/bin/sh", "dash"),
        tars.file("srv/index.html", b"hello from the guest\n"),
        tars.file(
            "usr/bin/serve",
            b"#!/bin/sh\necho serve runs with $(readlink /bin)\nexec busybox httpd -f -h /srv\n",
            mode=0o755,
        ),
    ]
