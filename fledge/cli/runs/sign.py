"""Runs the command ``fledge sign``."""

from __future__ import annotations

from pathlib import Path

from fledge.cli import passphrases
from fledge.cli.reporters import reported
from fledge.cli.units import path_text
from fledge.operations.sign import sign
from fledge.session import Session


def run(
    artifact: Path, key: str, public_key: Path | None, certificate: Path | None, verbose: bool
) -> None:
    """Sign the provenance of an artifact."""
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
