"""Build a 50 MiB payload with fledge and with the classic pipeline, in turn, and compare them.

The classic pipeline compiles an init with ``gcc -static``, copies everything to a staging folder
and runs ``find | cpio -o -H newc | gzip -n -9``. The payload consists of programs and libraries of
this machine, so compare only the figures of one run.

With --compressions, compare the compressions of fledge with each other instead.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from measure import Run, measure, mib

PAYLOAD_SIZE = 50 << 20
RUNS = 5

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


def main() -> None:
    for tool in ("gcc", "cpio", "gzip", "busybox"):
        if not shutil.which(tool):
            sys.exit(f"{tool} is missing; scripts/test-tools installs it")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _prepare(folder)
        if "--compressions" in sys.argv:
            _compare_compressions(folder)
            return
        sides: dict[str, tuple[Callable[[], Run], Path]] = {
            "fledge build": (lambda: _fledge(folder), folder / "fledge.cpio.gz"),
            "gcc, find, cpio, gzip": (lambda: _classic(folder), folder / "classic.cpio.gz"),
        }
        runs: dict[str, list[Run]] = {side: [] for side in sides}
        for _ in range(RUNS):
            for side, (run, _output) in sides.items():
                runs[side].append(run())

        print(
            f"| {RUNS} runs of each, medians, {os.cpu_count()} cores | time | peak memory | size |"
        )
        print("| --- | ---: | ---: | ---: |")
        for side, (_run, output) in sides.items():
            seconds = statistics.median(run.seconds for run in runs[side])
            memory = statistics.median(run.peak_memory for run in runs[side])
            size = output.stat().st_size
            print(f"| {side} | {seconds:.2f} s | {mib(memory)} | {mib(size)} |")
        fledge, classic = (runs[side] for side in sides)
        ratio = statistics.median(
            a.seconds / b.seconds for a, b in zip(fledge, classic, strict=True)
        )
        sizes = [output.stat().st_size for _run, output in sides.values()]
        print(f"| ratio | {ratio:.2f} | | {sizes[0] / sizes[1]:.3f} |")


def _compare_compressions(folder: Path) -> None:
    config = folder / "fledge.toml"
    text = config.read_text()
    print(f"| one run of each, {os.cpu_count()} cores | time | peak memory | size |")
    print("| --- | ---: | ---: | ---: |")
    for compression, level in COMPRESSIONS:
        table = f'[archive]\ncompression = "{compression}"\n'
        table += f"level = {level}\n" if level else ""
        config.write_text(text + table)
        run = _fledge(folder)
        size = (folder / "fledge.cpio.gz").stat().st_size
        name = f"{compression} {level or ''}".rstrip()
        print(f"| {name} | {run.seconds:.2f} s | {mib(run.peak_memory)} | {mib(size)} |")


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
    busybox = Path(shutil.which("busybox") or "")
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


def _fledge(folder: Path) -> Run:
    command = [sys.executable, "-m", "fledge", "build", "-q", "-o", "fledge.cpio.gz"]
    return measure(command, folder, _variables(folder))


def _classic(folder: Path) -> Run:
    return measure(["sh", "-c", CLASSIC], folder, _variables(folder))


def _variables(folder: Path) -> dict[str, str]:
    busybox = shutil.which("busybox") or ""
    return {"BUSYBOX": busybox, "FLEDGE_CACHE_DIR": str(folder / "cache")}


if __name__ == "__main__":
    main()
