"""Chooses the reporter of a command, and ends the command and its display in order."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fledge.cli.colour import stderr_has_colour
from fledge.cli.failures import end_interrupted, explained
from fledge.cli.lines import LineReporter
from fledge.host.settings import Settings

KEPT = "What was transferred is kept; the next run continues there."
"""Said to people who interrupt a download or an upload."""


@contextmanager
def reported(verbose: bool, quiet: bool = False) -> Iterator[LineReporter]:
    """Give the block a reporter for standard error, and explain what fails in it.

    ``quiet`` says that the block will not use it.

    The display of the reporter ends before anything is said of a failure.
    """
    with explained(verbose):
        reporter = LineReporter() if quiet else _stderr_reporter(verbose)
        try:
            yield reporter
        except KeyboardInterrupt as interrupt:
            reporter.close()
            end_interrupted(interrupt, KEPT if reporter.has_downloads else "")
        finally:
            reporter.close()


def _stderr_reporter(verbose: bool) -> LineReporter:
    """Return a reporter for standard error: with progress bars on a terminal, and with colours
    where they are wanted.
    """
    is_terminal = sys.stderr.isatty() and not Settings.from_environment().terminal_is_dumb
    has_colour = stderr_has_colour()
    if not (is_terminal or has_colour):
        return LineReporter(verbose)
    # Imported late because rich is slow to import, and logs do not need it.
    from fledge.cli.terminal import ColourReporter, TerminalReporter  # noqa: PLC0415

    kind = TerminalReporter if is_terminal else ColourReporter
    return kind(verbose, has_colour=has_colour)
