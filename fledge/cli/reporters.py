"""Chooses the reporter of a command."""

from __future__ import annotations

import sys

from fledge.cli.lines import LineReporter


def stderr_reporter() -> LineReporter:
    """Return a reporter for standard error, with colours and progress bars on a terminal."""
    if not sys.stderr.isatty():
        return LineReporter()
    # Imported late because rich is slow to import, and logs do not need it.
    from fledge.cli.terminal import TerminalReporter  # noqa: PLC0415

    return TerminalReporter()
