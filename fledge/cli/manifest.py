"""The command ``fledge manifest``."""

from __future__ import annotations

import sys

import typer

from fledge.cli.failures import explained
from fledge.cli.options import (
    DEFAULT_CONFIG,
    EXIT_CODES,
    ArtifactArgument,
    BaseUrlOption,
    Command,
    ConfigOption,
    ManifestOption,
    VerboseOption,
    new_app,
)
from fledge.operations import manifest as operation
from fledge.project.manifest import serialize

app = new_app()


@app.command(cls=Command, epilog=EXIT_CODES)
def run(
    artifact: ArtifactArgument,
    config: ConfigOption = DEFAULT_CONFIG,
    manifest: ManifestOption = None,
    base_url: BaseUrlOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Print the plugin manifest of an artifact.

    Volant needs it to install the artifact. What it says comes from the configuration, the
    artifact and its provenance.
    """
    with explained(verbose):
        filled, notes = operation.manifest(artifact, config, manifest=manifest, base_url=base_url)
        for note in notes:
            typer.echo(f"note: {note}", err=True)
        sys.stdout.write(serialize(filled).decode())
