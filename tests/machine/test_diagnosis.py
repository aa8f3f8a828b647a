"""Why a guest died, by lines that real guests wrote before they did."""

from __future__ import annotations

import pytest

from fledge.machine.diagnosis import GAVE_UP, PANIC, SHUTDOWN, diagnose
from fledge.tree.programs import Problem

KILLED = "[    3.912345] Kernel panic - not syncing: Attempted to kill init! exitcode=0x{}"
NO_ROOT = "[ 2.8] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block({})"


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["x", KILLED.format("00000100")], "the first process ended, with exit status 1"),
        (["x", KILLED.format("0000000b")], "the first process was killed by signal 11"),
        (["x", KILLED.format("0000008b")], "the first process was killed by signal 11"),
        ([NO_ROOT.format("0,0")], "no init found: the artifact has no program /init"),
        ([NO_ROOT.format("254,0")], "no driver for the filesystem of the disk (device 254,0)"),
        (
            [
                "[ 2.9] Failed to execute /init (error -8)",
                "[ 2.9] Kernel panic - not syncing: No working init found.  Try passing init=",
            ],
            "/init is not a program for this kernel (exec format error)",
        ),
        (
            ["env: can't execute '/init': No such file or directory", KILLED.format("00007f00")],
            "/init is missing, or the interpreter or loader that it names",
        ),
        (["[ 2] Failed to execute /init (error -2)", NO_ROOT.format("0,0")], "/init is missing"),
        (["env: can't execute '/init': Permission denied"], "/init is not executable"),
        (["/bin/app: Exec format error"], "/bin/app is not a program for this kernel"),
        (["[ 2] Kernel panic - not syncing: No working init found."], "no init found"),
        (
            [
                "[    2.9] EXT4-fs (vda): bad geometry: block count 2620 exceeds size of device"
                " (768 blocks)",
                "mount: mounting /dev/vda on /mnt failed: Invalid argument",
                KILLED.format("00007f00"),
            ],
            "the disk is shorter than its filesystem: it is truncated",
        ),
        (["[ 3] EXT4-fs (vda): VFS: Can't find ext4 filesystem"], "the disk has no ext4"),
        (["kestrel: copy self failed: no space left on device"], "the disk is full"),
        (["cp: write error: No space left on device"], "the disk is full"),
        (["fledge: the disk has no agent /bin/kestrel"], "the disk has no agent"),
        (
            [
                "[ 3.1] erofs: (device vda): z_erofs_load_all_compr_cfgs: unidentified algorithms"
                " 8, please upgrade kernel",
                "can't execute '/bin/kestrel': No such file or directory",
            ],
            "this kernel cannot decompress the erofs on the disk (algorithms 8)",
        ),
        (
            [
                "[ 3] erofs: (device vda): z_erofs_parse_cfgs: algorithm 3 isn't enabled on this"
                " kernel"
            ],
            "this kernel cannot decompress the erofs on the disk (algorithms 3)",
        ),
        (
            [
                "[ 3] erofs: (device vda): check_layout_compatibility: unidentified incompatible"
                " feature 80, please upgrade kernel version",
            ],
            "this kernel is too old for the erofs on the disk (features 80)",
        ),
        (
            ['[ 3] squashfs: Filesystem uses "zstd" compression. This is not supported'],
            "this kernel cannot decompress the squashfs on the disk: it lacks zstd",
        ),
        (
            ["fledge: the sealed disk cannot be set up by dm-verity: error 22"],
            "the sealed disk cannot be set up by dm-verity (error 22)",
        ),
        (
            [
                "[    5.151551] device-mapper: verity: 254:0: data block 44 is corrupted",
                "cat: read error: I/O error",
                KILLED.format("00000100"),
            ],
            "the sealed disk is damaged: dm-verity does not read its block 44",
        ),
        (["[ 1] Initramfs unpacking failed: write error", NO_ROOT.format("0,0")], "little memory"),
        (
            ["[ 1] Initramfs unpacking failed: compression method zstd not configured"],
            "this kernel cannot decompress the artifact: it lacks zstd",
        ),
        (["[ 1] Initramfs unpacking failed: junk within compressed archive"], "could not unpack"),
        (["fledge: /bin/kestrel did not start, powering off"], "could not be started"),
        (["[ 1] Kernel panic - not syncing: Fatal exception"], "the kernel panicked"),
    ],
)
def test_what_a_guest_said(lines: list[str], problem: str) -> None:
    assert problem in diagnose(lines).problem


def test_what_the_artifact_shows_counts_more_than_a_failed_start() -> None:
    lines = ["env: can't execute '/init': No such file or directory"]
    suspect = Problem("/init needs /bin/x, which is missing", "Add /bin/x.")
    found = diagnose(lines, suspect)
    assert (found.problem, found.advice) == (suspect.text, suspect.advice)
    full = ["cp: write error: No space left on device"]
    assert "full" in diagnose(full, suspect).problem


def test_what_is_a_death() -> None:
    assert PANIC.search(KILLED)
    assert PANIC.search(f"# {KILLED}")  # behind a prompt
    assert PANIC.search("[    1.000000][    T1] Kernel panic - not syncing: Fatal exception")
    assert PANIC.search("Kernel panic - not syncing: Fatal exception")  # with printk.time=0
    assert not PANIC.search("[    3.912345] ---[ end Kernel panic - not syncing: Fatal exception ]")
    assert not PANIC.search('grep "Kernel panic - not syncing: "')
    assert not PANIC.search("[error] Kernel panic - not syncing: none")
    assert GAVE_UP.search("fledge: /bin/kestrel did not start, powering off")
    assert SHUTDOWN.search("[    5.205361] reboot: Power down")
    assert not SHUTDOWN.search("please reboot: Power down")
