"""The command ``fledge fetch``."""

from __future__ import annotations

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
    verbose: VerboseOption = False,
) -> None:
    """Download everything that fledge.lock pins.

    Downloads go into the cache, for builds with --offline.
    """
    runs.fetch.run(projects, config, platform, changes, verbose)
