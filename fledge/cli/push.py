"""The command ``fledge push``."""

from __future__ import annotations

from typing import Annotated

import typer

from fledge.cli import runs
from fledge.cli.options import EXIT_CODES, Command, VerboseOption, new_app

app = new_app()


@app.command(cls=Command, epilog=EXIT_CODES)
def run(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="ARTIFACT... REFERENCE",
            help="The files to push, and the name to give them: HOST/NAME:TAG, or HOST/PREFIX/ to"
            " push each under its own name.",
            show_default=False,
        ),
    ],
    whole: Annotated[
        bool,
        typer.Option(
            "--whole", help="Push a file as one blob, which every client can read, not in chunks."
        ),
    ] = False,
    verbose: VerboseOption = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON array instead of the names.")
    ] = False,
) -> None:
    """Push artifacts to a registry.

    The plugin manifest and the provenance beside an artifact go with it. What the registry has
    already is not sent again. The login is that of docker or podman.
    """
    runs.push.run(arguments, whole, verbose, as_json)
