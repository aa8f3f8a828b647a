"""Runs the command ``fledge push``."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from fledge.cli.reporters import reported
from fledge.operations.push import push
from fledge.session import Session


def run(arguments: list[str], whole: bool, verbose: bool, as_json: bool) -> None:
    """Push artifacts to a registry."""
    if len(arguments) < 2:
        raise typer.BadParameter("name the files first, and then where to push them to")
    *files, reference = arguments
    with reported(verbose) as reporter:
        pushed = push(
            list(map(Path, files)),
            reference,
            whole=whole,
            session=Session.default(reporter=reporter),
        )
        if as_json:
            entries = [
                {
                    "path": str(each.path),
                    "reference": each.reference,
                    "sha256": each.digest.hex,
                    "size": each.size,
                    "sent": each.sent,
                }
                for each in pushed
            ]
            print(json.dumps(entries, indent=2))
        else:
            for each in pushed:
                print(each.reference)
