"""busybox in the tree: the binary and a symlink for each of its applets."""

from __future__ import annotations

import re

from fledge.errors import CorruptError
from fledge.tree import File, Symlink, Tree
from fledge.tree.content import Span, read_content
from fledge.tree.elf import architecture

MAX_SIZE = 64 << 20
"""No busybox is near this size in bytes; the binary is read into memory."""

NAMES = re.compile(rb"(?:(?:\[\[?|[a-z][a-z0-9_.+-]{0,62})\0){2,}")
"""NUL-terminated names; what stands before the first is another table and ends in any byte."""


def install(tree: Tree, binary: Span) -> tuple[str, int]:
    """Put busybox at ``/bin/busybox``, its applets beside it where the tree has no such program.

    Returns the architecture it is for (OCI name) and the number of applets. Raises
    `CorruptError` if it is not a busybox.
    """
    if binary.size > MAX_SIZE:
        raise CorruptError(f"{binary.path} has {binary.size} bytes: too large for a busybox")
    program = b"".join(read_content(binary))
    machine = architecture(program)
    if machine is None:
        raise CorruptError(
            "the busybox is not an ELF program",
            "Check what busybox_url in [source] really serves.",
        )
    names = applets(program)
    if not names:
        raise CorruptError(
            "the busybox has no applets in it",
            "Point busybox_url in [source] at a static busybox binary.",
        )
    tree.add(b"/bin/busybox", File(mode=0o755, mtime_ns=tree.mtime_ns, content=binary))
    for name in names:
        if tree.get(b"/bin/" + name) is None:
            tree.add(b"/bin/" + name, Symlink(target=b"busybox", mtime_ns=tree.mtime_ns))
    return machine, len(names)


def applets(program: bytes) -> list[bytes]:
    """The names of the applets that a busybox binary has, without running it.

    busybox finds an applet by bisecting one array of NUL-terminated names in ascending order
    (``applet_names``), so that is the longest strictly ascending run of names in the binary.
    """
    if b"BusyBox v" not in program:
        return []
    longest: list[bytes] = []
    for names in NAMES.findall(program):
        run: list[bytes] = []
        for name in names.split(b"\0")[:-1]:
            if run and name <= run[-1]:
                run = []
            run.append(name)
            if len(run) > len(longest):
                longest = run
    return longest
