"""The command ``fledge lock``."""

from __future__ import annotations

from typing import Annotated

import typer

from fledge.cli.options import (
    DEFAULT_CONFIG,
    EXIT_CODES,
    Command,
    ConfigOption,
    PlatformsOption,
    VerboseOption,
    new_app,
)
from fledge.cli.reporters import reported
from fledge.cli.units import path_text
from fledge.operations.lock import lock
from fledge.session import Session

app = new_app()


@app.command(cls=Command, epilog=EXIT_CODES)
def run(
    config: ConfigOption = DEFAULT_CONFIG,
    platform: PlatformsOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit with 1 if the lock is outdated.")
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Pin the inputs of the configuration in fledge.lock.

    Looks up which image, agent and busybox the configuration refers to now, and writes their
    digests to fledge.lock beside it. Builds then use exactly these inputs.
    """
    with reported(verbose) as reporter:
        session = Session.default(reporter=reporter)
        print(path_text(lock(config, platform or (), check=check, session=session)))
