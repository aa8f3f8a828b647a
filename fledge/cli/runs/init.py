"""Runs the command ``fledge init``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from fledge.cli.reporters import reported
from fledge.cli.units import path_text
from fledge.operations.init import init
from fledge.operations.migrate import migrate
from fledge.project.recipes import Service
from fledge.session import Session

MAX_ARGUMENTS = 2


def run(
    arguments: Sequence[str],
    ci: Service | None,
    from_original: Path | None,
    offline: bool,
    verbose: bool,
) -> None:
    """Start a project, or change one of the original fledge. Prints the paths that it writes."""
    if from_original and arguments:
        raise typer.BadParameter("--from-original FILE needs no DIR and no WHAT")
    if len(arguments) > MAX_ARGUMENTS:
        raise typer.BadParameter("there are too many arguments: fledge init [[DIR] WHAT]")
    with reported(verbose) as reporter:
        session = Session.default(reporter=reporter, offline=offline)
        if from_original:
            written, folder = migrate(from_original, ci=ci, session=session), from_original.parent
        else:
            name, what = _split(arguments)
            written, folder = init(what, name, ci=ci, session=session), Path(name)
        if ci:
            reporter.note("next: fledge lock, and commit fledge.lock, from which CI builds")
        else:
            where = "" if folder == Path() else f" {folder}"
            reporter.note(f"next: fledge build{where}")
        reporter.close()
        for path in written:
            print(path_text(path))


def _split(arguments: Sequence[str]) -> tuple[str, str | None]:
    """Return folder and what to make a plugin of; None: what is in the folder."""
    if len(arguments) == MAX_ARGUMENTS:
        return arguments[0], arguments[1]
    if not arguments:
        return ".", None
    [only] = arguments
    return (only, None) if Path(only).is_dir() else (".", only)
