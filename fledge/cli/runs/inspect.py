"""Runs the command ``fledge inspect``."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import typer

from fledge.cli.entries import print_below, print_node
from fledge.cli.reporters import reported
from fledge.formats import open_artifact
from fledge.operations.entries import find_node


def run(artifact: Path, path: str | None, as_list: bool, as_json: bool, verbose: bool) -> None:
    """Show the content of an artifact."""
    if as_list and as_json:
        raise typer.BadParameter("--list and --json exclude each other")
    inside = os.fsencode(path or "/")
    if as_json or (path is None and not as_list):
        # Imported late, because the schema of projects is slow to load, and no file needs it.
        from fledge.cli.summary import print_summary  # noqa: PLC0415

        if not print_summary(artifact, inside, as_json, verbose):
            raise typer.Exit(1)
        return
    with reported(verbose) as reporter, ExitStack() as stack:
        # The display has to end before anything is printed.
        with reporter.work(f"reading {artifact.name}"):
            opened = stack.enter_context(open_artifact(artifact, None if as_list else inside))
            top = find_node(opened, inside, follow=not as_list)
        if as_list:
            print_below(opened, inside, top)
        else:
            print_node(opened, inside, top)
