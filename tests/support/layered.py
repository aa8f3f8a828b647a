"""A project with an image of two layers, of which the upper one replaces and removes files."""

from __future__ import annotations

from pathlib import Path

from tests.support import images, project, tars

BIDI = "\u202egpj.exe"
SCRIPT = "x<script>alert(1)<"
"""A name that would be a script. The slash of the end tag makes it a folder with a file."""

NET_RAW = "\1\0\0\2\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
"""The attribute for ``cap_net_raw=ep``."""

LOWER = tars.pack(
    tars.file("bin/tool", b"1" * 20_000, mode=0o755),
    tars.file("bin/su", b"s" * 300, mode=0o4755),
    tars.file("etc/old", b"o" * 5_000),
    tars.file("usr/lib/one", b"same" * 2_000),
    tars.file("usr/lib/two", b"same" * 2_000),
    tars.hard_link("usr/lib/link", "usr/lib/one"),
    tars.file(f"names/{SCRIPT}/script>", b"n" * 700),
    tars.file("names/\"'&<!--", b"n" * 600),
    tars.file(f"names/{BIDI}", b"n" * 500),
    tars.file("names/\udcff\n\x1b[2J", b"n" * 400),
)
UPPER = tars.pack(
    tars.file("bin/tool", b"2" * 30_000, mode=0o755),
    tars.file("etc/.wh.old"),
    tars.file(
        "bin/ping", b"p" * 100, mode=0o755, pax={"SCHILY.xattr.security.capability": NET_RAW}
    ),
)


def make(folder: Path, filesystem: str = "") -> Path:
    """Write the project. Returns its fledge.toml. ``filesystem`` is its table of the filesystem."""
    images.write_layout(folder / "layout", images.image(LOWER, UPPER), "hello")
    project.write(folder, "kestrel", b"#!/bin/sh\n" + b"k" * 90)
    project.write(folder, "own.conf", b"c" * 50)
    text = f"""
        version = "1"
        strategy = "oci_rootfs"
        [source]
        image = "oci:layout:hello"
        [filesystem]
        {filesystem}
        {project.LOCAL_AGENT}
        [mappings]
        "own.conf" = "/etc/own.conf"
        """
    return project.write(folder, "fledge.toml", text.encode())
