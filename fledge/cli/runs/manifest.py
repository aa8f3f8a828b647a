"""Runs the command ``fledge manifest``."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from fledge.cli.failures import explained
from fledge.cli.projects import locate
from fledge.operations import manifest as operation
from fledge.project.manifest import serialize


def run(
    artifact: Path, config: Path | None, manifest: Path | None, base_url: str | None, verbose: bool
) -> None:
    """Print the plugin manifest of an artifact."""
    with explained(verbose):
        filled, notes = operation.manifest(
            artifact, locate(config), manifest=manifest, base_url=base_url
        )
        for note in notes:
            typer.echo(f"note: {note}", err=True)
        sys.stdout.write(serialize(filled).decode())
