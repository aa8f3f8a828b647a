"""Ends fledge by a signal, or because nobody reads its output: it cleans up and says so."""

from __future__ import annotations

import os
import signal
import traceback
from types import FrameType
from typing import NoReturn

from fledge.cli.messages import print_error


def install_handlers() -> None:
    """Turn SIGTERM and SIGHUP into `KeyboardInterrupt`, as Python does with SIGINT."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Keep ignoring a signal that nohup made this process ignore.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(number)


def end_interrupted(interrupt: KeyboardInterrupt, hint: str = "") -> None:
    """Say what was written, and die of the signal that interrupted fledge."""
    # Runs the clean-up of blocks that were interrupted on entry or exit.
    traceback.clear_frames(interrupt.__traceback__)
    # Imported late, because `--help` loads this module too.
    from fledge.host.files import replaced  # noqa: PLC0415
    from fledge.tree.names import printable  # noqa: PLC0415

    written = " and ".join(printable(str(path)) for path in replaced) or "nothing"
    verb = "were" if len(replaced) > 1 else "was"
    print_error(f"interrupted; {written} {verb} written", *([hint] if hint else []))
    die_of(interrupt.args[0] if interrupt.args else signal.SIGINT)


def end_unwritable(error: Exception) -> None:
    """End fledge because of an `OutputError`.

    If the reader of the output has gone, as with ``| head``, die of SIGPIPE as other programs do.
    """
    cause = error.__cause__
    if isinstance(cause, BrokenPipeError):
        die_of(signal.SIGPIPE)
    problem = (getattr(cause, "strerror", None) or str(cause)).lower()
    print_error(f"standard output could not be written: {problem}")
    raise SystemExit(1)


def die_of(number: int) -> None:
    """Kill this process with a signal, so that the shell sees which one."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
