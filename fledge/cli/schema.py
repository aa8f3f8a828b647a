"""The command ``fledge schema``."""

from __future__ import annotations

import json

from fledge.cli.failures import explained
from fledge.cli.options import EXIT_CODES, Command, VerboseOption, new_app
from fledge.project.jsonschema import json_schema

app = new_app()


@app.command(cls=Command, epilog=EXIT_CODES)
def run(verbose: VerboseOption = False) -> None:
    """Print the JSON Schema of fledge.toml, for editors."""
    with explained(verbose):
        print(json.dumps(json_schema(), indent=2))
