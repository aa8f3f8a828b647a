"""The command ``fledge sign``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fledge.cli import runs
from fledge.cli.options import EXIT_CODES, ArtifactArgument, Command, VerboseOption, new_app

app = new_app()


@app.command(cls=Command, epilog=EXIT_CODES)
def run(
    artifact: ArtifactArgument,
    key: Annotated[
        str,
        typer.Option(
            "--key",
            metavar="FILE|env:NAME|exec:COMMAND",
            help="The private key: a file, a variable, or a program that gets the message on"
            " standard input and prints the signature.",
            show_default=False,
        ),
    ],
    public_key: Annotated[
        Path | None,
        typer.Option(
            "--public-key", metavar="FILE", help="The public key that the program signs for."
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The X.509 certificate of the key, to sign the root hash of a sealed disk as well,"
            " for a kernel.",
        ),
    ] = None,
    verbose: VerboseOption = False,
) -> None:
    """Sign the provenance of an artifact.

    Writes ARTIFACT.provenance.dsse.json, and with a certificate ARTIFACT.roothash.p7s. To sign
    with several keys, run it once for each.
    """
    runs.sign.run(artifact, key, public_key, certificate, verbose)
