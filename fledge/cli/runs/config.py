"""Runs the command ``fledge config show``."""

from __future__ import annotations

from pathlib import Path

import msgspec

from fledge.cli.artifacts import as_text
from fledge.cli.failures import explained
from fledge.cli.projects import locate
from fledge.host.settings import Settings
from fledge.project.config import read_document
from fledge.project.resolved import ResolvedKey, resolve
from fledge.project.values import literal
from fledge.tree.names import printable

MAX_WIDTH = 48
"""Columns of keys and values in which the origins are aligned."""


def show(
    config: Path | None,
    manifest: Path | None,
    changes: list[str] | None,
    verbose: bool,
    as_json: bool,
) -> None:
    """Show each value of the configuration, and where it comes from."""
    with explained(verbose):
        document = read_document(locate(config), manifest, changes or ())
        found = resolve(document, Settings.from_environment())
        if as_json:
            print(as_text([msgspec.to_builtins(each) for each in found]))
            return
        lines = [_line(each) for each in found]
        width = max(min(len(each), MAX_WIDTH) for each in lines)
        for line, each in zip(lines, found, strict=True):
            print(printable(f"{line:<{width}}  # {each.origin}"))


def _line(found: ResolvedKey) -> str:
    return f"{found.key} = {literal(found.value)}"
