"""Runs the command ``fledge keygen``."""

from __future__ import annotations

from pathlib import Path

from fledge.cli import passphrases
from fledge.cli.reporters import reported
from fledge.cli.units import path_text
from fledge.host.settings import Settings
from fledge.operations.sign import keygen
from fledge.project.keys import KeyType


def run(name: Path, kind: KeyType, verbose: bool) -> None:
    """Make a key that signs artifacts."""
    with reported(verbose) as reporter:
        passphrase = Settings.from_environment().key_passphrase or ""
        if not passphrase and passphrases.can_ask():
            passphrase = passphrases.ask_for_new()
        made = keygen(name, kind, passphrase=passphrase)
        if not passphrase:
            reporter.note(f"{made.private} is not encrypted: whoever can read it can sign")
        for path in (made.private, made.public):
            print(path_text(path))
