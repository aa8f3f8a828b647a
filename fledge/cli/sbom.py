"""The command ``fledge sbom``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from fledge.cli import runs
from fledge.cli.options import EXIT_CODES, ArtifactArgument, Command, VerboseOption, new_app

app = new_app()


@app.command(cls=Command, epilog=EXIT_CODES)
def run(
    artifact: ArtifactArgument,
    kind: Annotated[
        Literal["spdx", "cyclonedx"],
        typer.Option("--format", help="SPDX 2.3 or CycloneDX 1.6, both as JSON."),
    ] = "spdx",
    verbose: VerboseOption = False,
) -> None:
    """Print the SBOM of an artifact: the software in it.

    Lists the packages of apk, dpkg, rpm, Python, Node.js and Go that are in it and, from the
    provenance beside it, what it was built from. With [sbom] in fledge.toml, a build writes the
    same beside the artifact.
    """
    runs.sbom.run(artifact, kind, verbose)
