"""The command ``fledge check``."""

from __future__ import annotations

from fledge.cli.failures import explained
from fledge.cli.options import (
    DEFAULT_CONFIG,
    EXIT_CODES,
    Command,
    ConfigOption,
    VerboseOption,
    new_app,
)
from fledge.cli.units import path_text
from fledge.operations.check import check

app = new_app()


@app.command(cls=Command, epilog=EXIT_CODES)
def run(config: ConfigOption = DEFAULT_CONFIG, verbose: VerboseOption = False) -> None:
    """Validate the configuration and the files it names.

    Downloads and writes nothing.
    """
    with explained(verbose):
        check(config)
        print(f"{path_text(config)} is valid")
