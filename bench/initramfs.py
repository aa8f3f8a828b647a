"""Build a 50 MiB payload with fledge and with the classic pipeline, in turn.

The classic pipeline compiles an init with ``gcc -static``, copies everything to a staging folder
and runs ``find | cpio -o -H newc | gzip -n -9``. The payload consists of programs and libraries of
this machine. With --compressions, the compressions of fledge are compared with their codec alone,
which gets the archive in one piece.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path

from measure import PYTHON, Row, Run, Way, fledge, in_turn, main, measure, version

PAYLOAD_SIZE = 50 << 20

COMPRESSIONS = (
    *(("gzip", 9), ("gzip", 12), ("zstd", 3), ("zstd", 9), ("zstd", 19), ("lz4", 9), ("lz4", 12)),
    ("none", None),
)
"""Each with a level."""

INIT = r"""
#include <sys/mount.h>
#include <unistd.h>
int main(void) {
    mount("devtmpfs", "/dev", "devtmpfs", 0, 0);
    mount("proc", "/proc", "proc", 0, 0);
    mount("sysfs", "/sys", "sysfs", 0, 0);
    mount("tmpfs", "/tmp", "tmpfs", 0, 0);
    mount("tmpfs", "/run", "tmpfs", 0, 0);
    return execl("/bin/kestrel", "kestrel", (char *)0);
}
"""

CLASSIC = r"""
set -e
rm -rf stage
mkdir -p stage/bin stage/dev stage/proc stage/sys stage/tmp stage/run stage/usr/share
gcc -static -Os -o stage/init init.c
cp "$BUSYBOX" stage/bin/busybox
cd stage/bin
for name in $(./busybox --list); do [ -e "$name" ] || ln -s busybox "$name"; done
cd ../..
cp agent stage/bin/kestrel
cp -a payload stage/usr/share/payload
(cd stage && find . | cpio --quiet -o -H newc) | gzip -n -9 > classic.cpio.gz
"""

ALONE = {
    "zstd": """
import sys, zstandard
data = open("plain", "rb").read()
compressor = zstandard.ZstdCompressor(level=int(sys.argv[1]), threads=int(sys.argv[2]))
open("image", "wb").write(compressor.compress(data))
""",
    "lz4": """
import sys, lz4.frame
data = open("plain", "rb").read()
open("image", "wb").write(lz4.frame.compress(data, compression_level=int(sys.argv[1])))
""",
}
"""How the packages that fledge uses compress, in Python."""


def benchmark(folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    _prepare(folder)
    if arguments.compressions is not None:
        yield from _compressions(folder, arguments)
        return
    ours, theirs = folder / "fledge.cpio.gz", folder / "classic.cpio.gz"
    peer = f"{version('gcc', '--version')}, {version('cpio', '--version')}"
    yield from in_turn(
        arguments,
        [
            Way("fledge build", lambda: fledge(folder, "build", "-q", "-o", ours.name), ours),
            Way("gcc, find, cpio, gzip", lambda: _classic(folder), theirs, peer),
        ],
    )


def _compressions(folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    text = (folder / "fledge.toml").read_text()
    ways = []
    for compression, level in COMPRESSIONS:
        title = f"{compression} {level or ''}".rstrip()
        table = f'[archive]\ncompression = "{compression}"\n'
        (folder / f"{title}.toml").write_text(
            text + table + (f"level = {level}\n" if level else "")
        )
        if arguments.compressions and f"{compression}:{level}" not in arguments.compressions:
            continue
        build = partial(_build, folder, title)
        ways.append(Way(title, build, folder / "image"))
        if compression in ALONE:
            command = [PYTHON, "-c", ALONE[compression], str(level), str(_cores())]
            alone = partial(measure, command, folder)
            peer = metadata.version({"zstd": "zstandard"}.get(compression, compression))
            ways.append(Way(f"{title}, the codec alone", alone, folder / "image", peer))
    _build(folder, "none")
    (folder / "image").rename(folder / "plain")
    yield from in_turn(arguments, ways)


def _build(folder: Path, title: str) -> Run:
    return fledge(folder, "build", "-q", "-c", f"{title}.toml", "-o", "image")


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _prepare(folder: Path) -> None:
    payload = folder / "payload"
    payload.mkdir()
    left = PAYLOAD_SIZE
    for top in (Path("/usr/lib"), Path("/usr/share")):
        for number, source in enumerate(sorted(top.rglob("*"))):
            if left and source.is_file() and not source.is_symlink() and os.access(source, os.R_OK):
                # Copied without reading it into memory, which a child's peak would include.
                target = payload / f"{number:06}-{source.name}"
                shutil.copyfile(source, target)
                os.truncate(target, min(left, target.stat().st_size))
                left -= target.stat().st_size
    busybox = Path(_busybox())
    (folder / "init.c").write_text(INIT)
    (folder / "agent").write_text("#!/bin/busybox sh\n")
    (folder / "fledge.toml").write_text(f"""
version = "1"
strategy = "initramfs"
[agent]
source_strategy = "local"
path = "agent"
[source]
busybox_url = "{busybox.resolve().as_uri()}"
busybox_sha256 = "{hashlib.sha256(busybox.read_bytes()).hexdigest()}"
[mappings]
"payload" = "/usr/share/payload"
""")


def _classic(folder: Path) -> Run:
    return measure(["sh", "-c", CLASSIC], folder, {"BUSYBOX": _busybox()})


def _busybox() -> str:
    return shutil.which("busybox") or sys.exit("busybox is missing; run scripts/test-tools")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compressions",
        nargs="*",
        metavar="NAME:LEVEL",
        help="compare these, such as zstd:3; without any, all",
    )


if __name__ == "__main__":
    main(benchmark, __doc__, add_arguments)
