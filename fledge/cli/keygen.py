"""The command ``fledge keygen``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fledge.cli import runs
from fledge.cli.options import EXIT_CODES, Command, VerboseOption, new_app

app = new_app()


class Kind(str, Enum):
    """The kinds of keys."""

    ECDSA = "ecdsa-p256"
    ED25519 = "ed25519"


@app.command(cls=Command, epilog=EXIT_CODES)
def run(
    name: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="NAME", help="Write NAME.key and NAME.pub."),
    ] = Path("fledge"),
    kind: Annotated[Kind, typer.Option("--type", help="The kind of the key.")] = Kind.ECDSA,
    verbose: VerboseOption = False,
) -> None:
    """Make a key that signs artifacts.

    The private key is encrypted with FLEDGE_KEY_PASSPHRASE or, on a terminal, with the passphrase
    that you are asked for. No file is overwritten.
    """
    runs.keygen.run(name, kind.value, verbose)
