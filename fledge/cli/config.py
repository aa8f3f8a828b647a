"""The command ``fledge config show``."""

from __future__ import annotations

from typing import Annotated

import typer

from fledge.cli import runs
from fledge.cli.options import (
    EXIT_CODES,
    Command,
    ConfigOption,
    ManifestOption,
    SetOption,
    VerboseOption,
    new_app,
)

app = new_app("Show where each value of the config comes from.")


@app.callback(epilog=EXIT_CODES)
def group() -> None:
    """Show where each value of the config comes from."""


@app.command(cls=Command, epilog=EXIT_CODES)
def show(
    config: ConfigOption = None,
    manifest: ManifestOption = None,
    changes: SetOption = None,
    verbose: VerboseOption = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON array of the keys instead.")
    ] = False,
) -> None:
    """Show each value of the configuration, and where it comes from.

    That is a line of a file, a default, a variable of the environment, an option or fledge.lock.
    """
    runs.config.show(config, manifest, changes, verbose, as_json)
