"""Makes projects: folders with a fledge.toml and all files that it names."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.layouts import make_layout


def program(machine: int = 62, *, big_endian: bool = False, body: bytes = b"") -> bytes:
    """Return the header of an ELF program without segments, followed by ``body``."""
    order, wide = ">" if big_endian else "<", machine not in (3, 40)
    ident = bytes([0x7F, *b"ELF", 2 if wide else 1, 2 if big_endian else 1]).ljust(16, b"\0")
    word, size, segment = ("Q", 64, 56) if wide else ("I", 52, 32)
    form = f"{order}HHI{word}{word}{word}IHHHHHH"
    return ident + struct.pack(form, 2, machine, 1, 0, 0, 0, 0, size, segment, 0, 0, 0, 0) + body


APPLETS = (b"[", b"ash", b"busybox", b"cat", b"mount", b"sh")

FILES = {
    "kestrel": b"#!/bin/busybox sh\necho agent\n",
    "payload/webserver": program(body=b"not really" * 1600),
    "payload/webserver.yaml": b"port: 80\n",
    "payload/site/index.html": b"<h1>hello</h1>\n",
    "payload/site/img/logo.svg": b"<svg/>\n",
}

MAPPINGS = """
[mappings]
"payload/webserver" = "/usr/bin/webserver"
"payload/webserver.yaml" = "/etc/webserver/config.yaml"
"payload/site" = "/var/www"
"""

LOCAL_AGENT = """
[agent]
source_strategy = "local"
path = "kestrel"
"""


@dataclass(frozen=True)
class Outcome:
    """The exit code and output of one run of the command."""

    code: int
    out: str
    err: str


Fledge = Callable[..., Outcome]
"""The type of the fixture `fledge`, which runs the command with its arguments."""


def busybox(*applets: bytes, machine: int = 62) -> bytes:
    """Return a file that fledge accepts as busybox, although no machine runs it."""
    names = b"\0".join(sorted(applets or APPLETS))
    return program(machine, body=b"\0BusyBox v1.36.1 (test)\0\0" + names + b"\0\0")


def write(folder: Path, name: str, data: bytes, *, executable: bool = False) -> Path:
    """Write a file and make its parents."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o755 if executable else 0o644)
    return path


def source(url: str, data: bytes) -> str:
    """Return the table ``[source]`` for a busybox of ``data`` at ``url``."""
    digest = hashlib.sha256(data).hexdigest()
    return f'\n[source]\nbusybox_url = "{url}"\nbusybox_sha256 = "{digest}"\n'


def make(
    folder: Path,
    *tables: str,
    files: dict[str, bytes] | None = None,
    busybox_binary: bytes | None = None,
) -> Path:
    """Write a project, by default with a local agent and mappings. Returns its fledge.toml."""
    binary = busybox_binary or busybox()
    for name, data in (FILES if files is None else files).items():
        write(folder, name, data)
    url = write(folder, "busybox", binary).as_uri()
    tables = tables or (LOCAL_AGENT, MAPPINGS)
    if not any("[source]" in table for table in tables):
        tables += (source(url, binary),)
    text = 'version = "1"\nstrategy = "initramfs"\n' + "".join(tables)
    return write(folder, "fledge.toml", text.encode())


def make_many(folder: Path, host: str, count: int, bases: int) -> None:
    """Write ``plugins/NN``, each from one of the images ``base0:v1`` and so on of a registry."""
    for number in range(count):
        plugin = folder / "plugins" / f"{number:02}"
        write(plugin, "kestrel", program())
        write(plugin, "own", b"%d" % number)
        text = (
            f'version = "1"\nstrategy = "oci_rootfs"\n[source]\n'
            f'image = "docker://{host}/base{number % bases}:v1"\n{LOCAL_AGENT}'
            f'[mappings]\nown = "/etc/own"\n'
        )
        write(plugin, "fledge.toml", text.encode())


def make_rootfs(folder: Path, filesystem: str = "size_buffer_mb = 8") -> Path:
    """Write a project with an image in an OCI layout beside it. Returns its fledge.toml.

    ``filesystem`` is its table of the filesystem.
    """
    make_layout(folder / "layout")
    for name, data in FILES.items():
        write(folder, name, data)
    text = f"""
        version = "1"
        strategy = "oci_rootfs"
        [source]
        image = "oci:layout:hello"
        [filesystem]
        {filesystem}
        {LOCAL_AGENT}
        {MAPPINGS}
        """
    return write(folder, "fledge.toml", text.encode())
