"""The command ``fledge sign``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fledge.cli import passphrases
from fledge.cli.options import EXIT_CODES, ArtifactArgument, Command, VerboseOption, new_app
from fledge.cli.reporters import reported
from fledge.cli.units import path_text
from fledge.operations.sign import sign
from fledge.session import Session

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
    with reported(verbose) as reporter:
        session = Session.default(reporter=reporter)
        ask = passphrases.ask if passphrases.can_ask() else None
        path = sign(
            artifact,
            key,
            public_key=public_key,
            certificate=certificate,
            passphrase=ask,
            session=session,
        )
        print(path_text(path))
