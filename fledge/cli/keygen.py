"""The command ``fledge keygen``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fledge.cli import passphrases
from fledge.cli.options import EXIT_CODES, Command, VerboseOption, new_app
from fledge.cli.reporters import reported
from fledge.cli.units import path_text
from fledge.host.settings import Settings
from fledge.operations.sign import keygen

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
    with reported(verbose) as reporter:
        passphrase = Settings.from_environment().key_passphrase or ""
        if not passphrase and passphrases.can_ask():
            passphrase = passphrases.ask_for_new()
        made = keygen(name, kind.value, passphrase=passphrase)
        if not passphrase:
            reporter.note(f"{made.private} is not encrypted: whoever can read it can sign")
        for path in (made.private, made.public):
            print(path_text(path))
