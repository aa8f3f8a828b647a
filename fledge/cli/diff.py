"""The command ``fledge diff``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fledge.cli import runs
from fledge.cli.options import EXIT_CODES, Command, VerboseDifferenceOption, new_app

app = new_app()


@app.command(cls=Command, epilog=EXIT_CODES)
def run(
    before: Annotated[Path, typer.Argument(metavar="A", show_default=False)],
    after: Annotated[Path, typer.Argument(metavar="B", show_default=False)],
    verbose: VerboseDifferenceOption = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as one JSON object.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page for a browser, with a map of the changes."),
    ] = None,
) -> None:
    """Explain how two artifacts differ.

    They may have different formats. The exit code is 0 if all bytes are equal, and 1 if not.
    """
    runs.diff.run(before, after, verbose, as_json, html)
