"""Finds the applets of a busybox in its binary."""

from __future__ import annotations

import re

MAX_BUSYBOX_SIZE = 64 << 20
"""Maximum size of a busybox in bytes, because it is read into memory."""

APPLET_NAMES = re.compile(rb"(?:(?:\[\[?|[a-z][a-z0-9_.+-]{0,62})\0){2,}")
"""Two or more NUL-terminated names of applets in a row."""


def applets(program: bytes) -> list[bytes]:
    """Return the names of the applets in a busybox binary, without running it.

    busybox finds an applet by binary search in ``applet_names``, an array of NUL-terminated names
    in ascending order. That array is the longest strictly ascending run of names in the binary.
    """
    if b"BusyBox v" not in program:
        return []
    longest: list[bytes] = []
    for names in APPLET_NAMES.findall(program):
        run: list[bytes] = []
        for name in names.split(b"\0")[:-1]:
            if run and name <= run[-1]:
                run = []
            run.append(name)
            if len(run) > len(longest):
                longest = run
    return longest
