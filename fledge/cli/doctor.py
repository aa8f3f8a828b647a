"""The command ``fledge doctor``."""

from __future__ import annotations

from typing import Annotated

import typer

from fledge.cli import runs
from fledge.cli.options import EXIT_CODES, Command, VerboseOption, new_app

app = new_app()


@app.command(cls=Command, epilog=EXIT_CODES)
def run(
    verbose: VerboseOption = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON array of the findings instead.")
    ] = False,
) -> None:
    """Show which parts of this machine fledge can use.

    Nothing of it is needed to build from a registry. The exit code is 5 if something that is
    configured does not work, such as a variable that names a missing file.
    """
    runs.doctor.run(verbose, as_json)
