"""Explains why a guest died, by what its console said."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from fledge.machine.shim import AGENT_OF_DISK, NOT_SEALED
from fledge.tree.programs import Problem

# A line of the kernel begins with a time, unless it is told not to (printk.time=0). It may follow
# what a program has not ended with a newline.
_KERNEL = r"(?:^|\[ *\d+\.\d{6}\](?:\[ *[CT]\d+\])? )"
PANIC = re.compile(rf"{_KERNEL}Kernel panic - not syncing: ")
"""What the kernel says when it panics, before a trace of calls."""
SHUTDOWN = re.compile(rf"{_KERNEL}reboot: (?:Power down|Restarting system|System halted)")
"""What the kernel says when a program ends the machine (kernel/reboot.c)."""
GAVE_UP = re.compile(r"^fledge: /bin/kestrel did not start, powering off$")
"""What the built-in init says before it ends the machine."""


class Diagnosis(msgspec.Struct, frozen=True):
    """Why a guest died."""

    problem: str
    advice: str = ""


# Patterns of lines, what they mean, and what to do about it. Causes come before what follows from
# them: a guest without memory cannot start its init either.
_CAUSES = (
    (
        r"block count \d+ exceeds size of device|attempt to access beyond end of device"
        r"|unable to read superblock",
        "the disk is shorter than its filesystem: it is truncated",
        "Copy or build the artifact again.",
    ),
    (
        r"VFS: Can't find ext4 filesystem",
        "the disk has no ext4 filesystem, which is what Volant mounts it as",
        'Build it with [filesystem] type = "ext4".',
    ),
    (
        r"(?i)no space left on device",
        "the disk is full: the agent copies itself to it",
        "Raise [filesystem] size_buffer_mb.",
    ),
    (
        r"Initramfs unpacking failed: write error|System is deadlocked on memory"
        r"|Out of memory and no killable",
        "the guest has too little memory for the artifact",
        "Give it more with --memory.",
    ),
    (
        r"Initramfs unpacking failed: compression method (?P<what>\w+) not configured",
        "this kernel cannot decompress the artifact: it lacks {what}",
        "Use another kernel, or another compression.",
    ),
    (
        r"Initramfs unpacking failed: (?P<what>.*)",
        "the kernel could not unpack the artifact: {what}",
        "Build the artifact again, or compare it with its checksum.",
    ),
    (
        r"unidentified algorithms (?P<what>\w+), please upgrade kernel"
        r"|z_erofs_\w+: algorithm (?P<other>\d+) isn't enabled on this kernel",
        "this kernel cannot decompress the erofs on the disk (algorithms {what})",
        "fledge check --kernel says what it lacks. Use another kernel, or another compression in"
        " [filesystem].",
    ),
    (
        r"erofs.*: unidentified incompatible feature (?P<what>\w+), please upgrade kernel",
        "this kernel is too old for the erofs on the disk (features {what})",
        "fledge check --kernel says which it needs.",
    ),
    (
        r'Filesystem uses "(?P<what>\w+)" compression\. This is not supported',
        "this kernel cannot decompress the squashfs on the disk: it lacks {what}",
        "Use another kernel, or another compression in [filesystem].",
    ),
    (
        re.escape(AGENT_OF_DISK),
        f"{AGENT_OF_DISK}, and fledge has no other to start it",
        "Add [agent] to fledge.toml, and build it again.",
    ),
    (
        rf"{re.escape(NOT_SEALED)}: error (?P<what>\d+)",
        f"{NOT_SEALED} (error {{what}})",
        "Boot a kernel with CONFIG_BLK_DEV_DM, CONFIG_DM_VERITY and CONFIG_CRYPTO_SHA256.",
    ),
    (
        r"device-mapper: verity: \S+: (?:data|metadata) block (?P<what>\d+) is corrupted",
        "the sealed disk is damaged: dm-verity does not read its block {what}",
        "fledge verify --root-hash says what is damaged. Copy or build the artifact again.",
    ),
)
_FAILED_STARTS = (
    (
        r"(?:can't execute '(?P<what>[^']*)'|(?P<other>/[^\s:]+)): Exec format error"
        r"|Failed to execute (?P<third>\S+) \(error -8\)",
        "{what} is not a program for this kernel (exec format error)",
        "Build it for the architecture of the kernel, or boot a kernel of its own.",
    ),
    (
        r"can't execute '(?P<what>[^']*)': No such file or directory"
        r"|Failed to execute (?P<third>\S+) \(error -2\)",
        "{what} is missing, or the interpreter or loader that it names",
        "Add what is missing with [mappings].",
    ),
    (
        r"can't execute '(?P<what>[^']*)': Permission denied"
        r"|Failed to execute (?P<third>\S+) \(error -13\)",
        "{what} is not executable",
        "Make it executable.",
    ),
    (
        r"/bin/kestrel did not start, powering off",
        "the agent /bin/kestrel could not be started",
        "The lines above say why.",
    ),
    (
        r"Unable to mount root fs on (?:\"\" or )?unknown-block\(0,0\)|Cannot open root device",
        "no init found: the artifact has no program /init that the kernel can start, and there is"
        " no root device",
        "Map an executable to /init, or leave out [init] to get the built-in one.",
    ),
    (
        r"Unable to mount root fs on (?:\".*\" or )?unknown-block\((?P<what>[\d,]+)\)",
        "the kernel has no driver for the filesystem of the disk (device {what})",
        "Use a kernel that has it built in, or a modules folder beside the kernel.",
    ),
    (
        r"No working init found|No init found",
        "no init found: the kernel could start none of the programs that it tried",
        "Map an executable to /init, or leave out [init] to get the built-in one.",
    ),
)

_EXIT = re.compile(r"Attempted to kill init! exitcode=0x(?P<code>[0-9a-f]{8})")


def diagnose(lines: Sequence[str], suspect: Problem | None = None) -> Diagnosis:
    """Return why the guest with this console died, as far as its lines say.

    ``suspect`` is why the artifact has a program that cannot be started, which counts more than
    what the kernel or a shell says of the attempt; None if nothing is known of one.
    """
    text = "\n".join(lines)
    if found := _search(_CAUSES, text):
        return found
    if suspect:
        return Diagnosis(suspect.text, suspect.advice)
    if found := _search(_FAILED_STARTS, text):
        return found
    if end := _EXIT.search(text):
        code = int(end["code"], 16)
        if signal := code & 0x7F:
            return Diagnosis(f"the first process was killed by signal {signal}")
        return Diagnosis(f"the first process ended, with exit status {code >> 8}")
    return Diagnosis("the kernel panicked")


def _search(known: Sequence[tuple[str, str, str]], text: str) -> Diagnosis | None:
    for pattern, problem, advice in known:
        if found := re.search(pattern, text):
            what = next(filter(None, found.groupdict().values()), "it")
            return Diagnosis(problem.format(what=what), advice)
    return None
