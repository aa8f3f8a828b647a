"""The command ``fledge version``."""

from __future__ import annotations

from fledge._version import __version__
from fledge.cli.options import new_app

app = new_app()


@app.command()
def run() -> None:
    """Print the version."""
    print(f"fledge {__version__}")
