"""Tunes the running Python process."""

from __future__ import annotations

import atexit
import gc
import resource
import sys

SWITCH_INTERVAL = 0.0005
"""Seconds that a thread may run while another one waits for the interpreter's lock."""

OPEN_FILES = 1 << 16
"""Files that this process may open at once, if the system allows it. Each layer of an image is one,
and the usual limit is 1024, for the sake of select(2)."""


def tune_for_builds() -> None:
    """Tune this process for builds, as the command line does, until the process ends.

    Turns off the collection of reference cycles, lets threads switch more often, and raises the
    limit of open files. Do not call it in a long-running process that creates cycles: they would
    never be freed.
    """
    # A build creates many objects but hardly any cycles. The collector would scan these objects
    # again and again, and once more when the interpreter exits.
    gc.disable()
    atexit.register(gc.freeze)
    # The threads that hash need the interpreter's lock often, but only briefly.
    sys.setswitchinterval(SWITCH_INTERVAL)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
