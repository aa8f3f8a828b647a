"""The command ``fledge fetch``."""

from __future__ import annotations

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
from fledge.operations.fetch import fetch
from fledge.session import Session

app = new_app()


@app.command(cls=Command, epilog=EXIT_CODES)
def run(
    config: ConfigOption = DEFAULT_CONFIG,
    platform: PlatformsOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Download everything that fledge.lock pins.

    Downloads go into the cache, for builds with --offline.
    """
    with reported(verbose) as reporter:
        fetch(config, platform or (), session=Session.default(reporter=reporter))
