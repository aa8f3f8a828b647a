"""The command ``fledge check``."""

from __future__ import annotations

from fledge.cli.options import (
    DEFAULT_CONFIG,
    EXIT_CODES,
    Command,
    ConfigOption,
    PlatformOption,
    VerboseOption,
    new_app,
)
from fledge.cli.reporters import reported
from fledge.cli.units import path_text
from fledge.operations.check import check
from fledge.session import Session

app = new_app()


@app.command(cls=Command, epilog=EXIT_CODES)
def run(
    config: ConfigOption = DEFAULT_CONFIG,
    platform: PlatformOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Validate the configuration and the files it names.

    Finds all that a build would find wrong with files of this machine. Downloads nothing, and
    writes nothing but the cache.
    """
    with reported(verbose) as reporter:
        session = Session.default(reporter=reporter, offline=True)
        check(config, platform=platform, session=session)
        print(f"{path_text(config)} is valid")
