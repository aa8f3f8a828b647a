"""Tunes the running Python process."""

from __future__ import annotations

import atexit
import gc
import sys

SWITCH_INTERVAL = 0.0005
"""Seconds that a thread may run while another one waits for the interpreter's lock."""


def tune_for_builds() -> None:
    """Tune this process for builds, as the command line does, until the process ends.

    Turns off the collection of reference cycles and lets threads switch more often. Do not call
    it in a long-running process that creates cycles: they would never be freed.
    """
    # A build creates many objects but hardly any cycles. The collector would scan these objects
    # again and again, and once more when the interpreter exits.
    gc.disable()
    atexit.register(gc.freeze)
    # The threads that hash need the interpreter's lock often, but only briefly.
    sys.setswitchinterval(SWITCH_INTERVAL)
