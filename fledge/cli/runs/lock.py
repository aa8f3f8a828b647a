"""Runs the command ``fledge lock``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import typer

from fledge.cli.projects import find, is_several, print_failures
from fledge.cli.reporters import reported
from fledge.cli.units import path_text
from fledge.operations.arguments import as_config
from fledge.operations.lock import Lookups, lock
from fledge.session import Session


def run(
    projects: list[str] | None,
    config: list[Path] | None,
    platform: list[str] | None,
    changes: list[str] | None,
    check: bool,
    verbose: bool,
) -> None:
    """Pin the inputs of the configuration in fledge.lock."""
    code = 0
    with reported(verbose) as reporter:
        session = Session.default(reporter=reporter)
        configs = find(projects, config)
        if is_several(projects, config):
            # Imported late, because one project is locked without it.
            from fledge.operations.many import Task, in_turn, project_name  # noqa: PLC0415

            lookups = Lookups()

            def lock_one(path: Path, session: Session) -> Path:
                config = as_config(path, None, changes or ())
                return lock(config, platform or (), check=check, session=session, lookups=lookups)

            tasks = [Task(project_name(each), partial(lock_one, each)) for each in configs]
            outcomes = in_turn(tasks, session)
            reporter.close()
            for outcome in outcomes:
                if outcome.value:
                    print(path_text(outcome.value))
            code = print_failures([(each.name, each.error) for each in outcomes])
        else:
            chosen = as_config(configs[0], None, changes or ())
            path = lock(chosen, platform or (), check=check, session=session)
            print(path_text(path))
    if code:
        raise typer.Exit(code)
