"""The command ``fledge lock``."""

from __future__ import annotations

from typing import Annotated

import typer

from fledge.cli import runs
from fledge.cli.options import (
    EXIT_CODES,
    Command,
    ConfigsOption,
    PlatformsOption,
    ProjectsArgument,
    SetOption,
    VerboseOption,
    new_app,
)

app = new_app()


@app.command(cls=Command, epilog=EXIT_CODES)
def run(
    projects: ProjectsArgument = None,
    config: ConfigsOption = None,
    platform: PlatformsOption = None,
    changes: SetOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit with 1 if the lock is outdated.")
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Pin the inputs of the configuration in fledge.lock.

    Looks up which image, agent and busybox the configuration refers to now, and writes their
    digests to fledge.lock beside it. Builds then use exactly these inputs.
    """
    runs.lock.run(projects, config, platform, changes, check, verbose)
