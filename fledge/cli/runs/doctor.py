"""Runs the command ``fledge doctor``."""

from __future__ import annotations

import sys

import msgspec
import typer

from fledge._version import __version__
from fledge.cli.artifacts import as_text
from fledge.cli.failures import explained
from fledge.errors import HostError
from fledge.operations.doctor import examine
from fledge.tree.names import printable

MARKS = {"works": "✓", "absent": "·", "broken": "✗"}
"""The mark of each state."""


def run(verbose: bool, as_json: bool) -> None:
    """Show which parts of this machine fledge can use."""
    with explained(verbose):
        found = examine()
        if as_json:
            print(as_text([msgspec.to_builtins(each) for each in found]))
        else:
            version = ".".join(map(str, sys.version_info[:3]))
            print(f"fledge {__version__}, Python {version}")
            for each in found:
                print(printable(f"{MARKS[each.state]} {each.name}: {each.detail}"))
                if each.hint:
                    print(printable(f"    {each.hint}"))
    if any(each.state == "broken" for each in found):
        raise typer.Exit(HostError.exit_code)
