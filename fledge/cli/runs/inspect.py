"""Runs the command ``fledge inspect``."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import typer

from fledge.cli.entries import print_below, print_node
from fledge.cli.reporters import reported
from fledge.cli.sizes import file_lines, folder_lines
from fledge.errors import ConfigError
from fledge.formats import open_artifact
from fledge.operations.entries import find_node
from fledge.tree import Directory
from fledge.tree.names import printable


def run(artifact: Path, path: str | None, as_list: bool, as_json: bool, verbose: bool) -> None:
    """Show the content of an artifact."""
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


def show_sizes(
    artifact: Path, path: str | None, depth: int, top: int | None, verbose: bool
) -> None:
    """Show the sizes of folders or, with ``top``, of so many of the largest files."""
    inside = os.fsencode(path or "/")
    with reported(verbose) as reporter, ExitStack() as stack:
        # The display has to end before anything is printed.
        with reporter.work(f"reading {artifact.name}"):
            opened = stack.enter_context(open_artifact(artifact))
            start = find_node(opened, inside, follow=True)
        if not isinstance(start, Directory):
            raise ConfigError(
                f"{printable(inside)} in {artifact} is not a directory",
                "Name a directory, or none for the whole artifact.",
            )
        lines = file_lines(inside, start, top) if top else folder_lines(inside, start, depth)
        for line in lines:
            print(line)


def write_page(artifact: Path, output: Path, verbose: bool) -> None:
    """Write a page about an artifact. The exit code is that of the summary."""
    # Imported late, because the schema of projects is slow to load, and nothing else here needs it.
    from fledge.cli.pages.artifact import artifact_page  # noqa: PLC0415
    from fledge.cli.pages.page import check, write  # noqa: PLC0415
    from fledge.operations.analyze import analyze  # noqa: PLC0415
    from fledge.session import Session  # noqa: PLC0415

    with reported(verbose) as reporter:
        check(output, artifact)
        found = analyze(artifact, Session.default(reporter=reporter))
        write(output, artifact_page(found, artifact))
    if found.summary.seal and not found.summary.seal.is_intact:
        raise typer.Exit(1)
