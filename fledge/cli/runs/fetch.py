"""Runs the command ``fledge fetch``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import typer

from fledge.cli.projects import find, is_several, print_failures
from fledge.cli.reporters import reported
from fledge.operations.arguments import as_config
from fledge.operations.fetch import fetch
from fledge.session import Session


def run(
    projects: list[str] | None,
    config: list[Path] | None,
    platform: list[str] | None,
    changes: list[str] | None,
    verbose: bool,
) -> None:
    """Download everything that fledge.lock pins."""
    code = 0
    with reported(verbose) as reporter:
        session = Session.default(reporter=reporter)
        configs = find(projects, config)
        if is_several(projects, config):
            # Imported late, because for one project nothing is forked.
            from fledge.operations.many import Task, project_name, side_by_side  # noqa: PLC0415

            tasks = [
                Task(project_name(each), partial(_fetch, each, platform or (), changes or ()))
                for each in configs
            ]
            outcomes = side_by_side(tasks, session)
            reporter.close()
            code = print_failures([(each.name, each.error) for each in outcomes])
        else:
            _fetch(configs[0], platform or (), changes or (), session)
    if code:
        raise typer.Exit(code)


def _fetch(path: Path, platforms: Sequence[str], changes: Sequence[str], session: Session) -> None:
    fetch(as_config(path, None, changes), platforms, session=session)
