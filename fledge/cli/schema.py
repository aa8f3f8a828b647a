"""The command ``fledge schema``."""

from __future__ import annotations

from fledge.cli import runs
from fledge.cli.options import EXIT_CODES, Command, VerboseOption, new_app

app = new_app()


@app.command(cls=Command, epilog=EXIT_CODES)
def run(verbose: VerboseOption = False) -> None:
    """Print the JSON Schema of fledge.toml, for editors."""
    runs.schema.run(verbose)
