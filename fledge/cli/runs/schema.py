"""Runs the command ``fledge schema``."""

from __future__ import annotations

import json

from fledge.cli.failures import explained
from fledge.project.jsonschema import json_schema


def run(verbose: bool) -> None:
    """Print the JSON Schema of fledge.toml, for editors."""
    with explained(verbose):
        print(json.dumps(json_schema(), indent=2))
