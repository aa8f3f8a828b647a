"""Builds of all formats that signals end at any moment, and what the next build finds.

FLEDGE_KILLS is how many there are, and FLEDGE_SEED makes them other ones.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from fledge.tree.content import hash_file
from tests.support import project
from tests.support.mounted import loop_devices

KILLS = int(os.environ.get("FLEDGE_KILLS", "14"))
SEED = int(os.environ.get("FLEDGE_SEED", "1"))

DISKS = {
    "ext4": "size_buffer_mb = 8",
    "squashfs": 'type = "squashfs"',
    "erofs": 'type = "erofs"\ncompression = "lz4"',
    "mkfs": 'size_buffer_mb = 8\nbuilder = "mkfs"',
    "xfs": 'size_buffer_mb = 8\ntype = "xfs"',
    "btrfs": 'size_buffer_mb = 8\ntype = "btrfs"',
}
FORMATS = ("initramfs", *DISKS)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)

AIMS = {
    "rename": ("ext4", "initramfs"),
    "mkfs.ext4": ("mkfs",),
    "debugfs": ("mkfs",),
    "mkfs.xfs": ("xfs",),
    "mount": ("xfs", "btrfs"),
    "umount": ("xfs", "btrfs"),
    "sync": ("xfs", "btrfs"),
}
"""The programs during which a signal comes, or the two renames between which it does, and the
formats that have them."""

BUILD = """
import os, sys, threading
from fledge.host import programs
aim, number, delay = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
del sys.argv[1:4]

def die():
    os.kill(os.getpid(), number)

def run(program, *arguments, **more):
    if program == aim:
        threading.Timer(delay, die).start()
    return run_program(program, *arguments, **more)

def replace(*arguments, **more):
    rename(*arguments, **more)
    die()

run_program, programs.run = programs.run, run
if aim == "rename":
    rename, os.replace = os.replace, replace
from fledge.__main__ import main
print("ready", flush=True)
main()
"""
"""Runs fledge and sends itself a signal, if aimed, ``delay`` seconds after the program begins."""


def make(folder: Path, format_name: str) -> Path:
    """Write a project whose artifact is ``out``."""
    if format_name == "initramfs":
        project.make(folder)
    else:
        project.make_rootfs(folder, DISKS[format_name])
    (folder / "result").mkdir()
    return folder


def start(folder: Path, aim: str, number: int = 0, delay: float = 0) -> subprocess.Popen[str]:
    """Start a build whose artifact differs from all earlier ones."""
    (folder / "payload/webserver.yaml").write_text(f"{time.monotonic_ns()}\n")
    command = [sys.executable, "-c", BUILD, aim, str(number), str(delay)]
    process = subprocess.Popen(
        [*command, "build", "-o", "result/out"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def finish(folder: Path) -> None:
    """Build once more, undisturbed."""
    process = start(folder, "nothing")
    _, err = process.communicate()
    assert process.returncode == 0, err


def what_is_left(folder: Path) -> list[str]:
    """Return what a killed build has left: files, mounts, loop devices, processes, half a pair."""
    result = folder / "result"
    names = {path.name for path in result.iterdir()}
    left = sorted(names - {"out", "out.provenance.json"})
    recorded = json.loads((result / "out.provenance.json").read_bytes())["subject"][0]["digest"]
    if recorded["sha256"] != hash_file(result / "out").digest.hex:
        left.append("a provenance of another artifact")
    left += loop_devices(folder)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(process.name) != os.getpid() and str(result) in os.readlink(process / "cwd"):
                left.append((process / "cmdline").read_text())
            if f"{folder.name}/result" in (process / "mountinfo").read_text():
                left.append(f"a mount of process {process.name}")
        except OSError:
            continue  # it has ended
    return left


def soon_nothing(left: Callable[[], list[str]]) -> list[str]:
    """Wait until nothing is left: the kernel cleans up behind a killed process."""
    for _ in range(100):
        if not left():
            return []
        time.sleep(0.1)
    return left()


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount an image")
@pytest.mark.timeout(300 + 60 * KILLS)
def test_the_next_build_finds_nothing_of_killed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = random.Random(SEED)  # noqa: S311
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    folders = {name: make(tmp_path / f"kills-{os.getpid()}-{name}", name) for name in FORMATS}
    seconds = {}
    for name, folder in folders.items():
        before = time.monotonic()
        finish(folder)
        seconds[name] = time.monotonic() - before
    aimed = [(aim, name, number) for aim in AIMS for name in AIMS[aim] for number in SIGNALS]
    choose.shuffle(aimed)
    ends: Counter[str] = Counter()
    for count in range(KILLS):
        if count % 2 and aimed:
            aim, name, number = aimed[count // 2 % len(aimed)]
            process = start(folders[name], aim, number, choose.uniform(0, 0.01))
        else:
            aim, name, number = "", choose.choice(FORMATS), choose.choice(SIGNALS)
            process = start(folders[name], "nothing")
            time.sleep(choose.uniform(0, seconds[name]))
            process.send_signal(number)
        _, err = process.communicate()
        story = f"kill {count} of seed {SEED}: {number.name} at {aim or 'random'}, {name}: {err}"
        assert process.returncode in (0, -number), story
        assert "Traceback" not in err, story
        ends["finished" if process.returncode == 0 else number.name] += 1
        finish(folders[name])
        left = soon_nothing(lambda folder=folders[name]: what_is_left(folder))  # type: ignore[misc]
        assert left == [], story
        print(f"seed {SEED}: {count + 1} of {KILLS}: {dict(ends)}", flush=True)
    assert ends["finished"] < KILLS
