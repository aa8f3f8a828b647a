"""The command ``fledge inspect``."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Annotated

import typer

from fledge.cli.entries import print_below, print_node
from fledge.cli.options import EXIT_CODES, ArtifactArgument, Command, VerboseOption, new_app
from fledge.cli.reporters import reported
from fledge.formats import open_artifact
from fledge.operations.entries import find_node

app = new_app()


@app.command(cls=Command, epilog=EXIT_CODES)
def run(
    artifact: ArtifactArgument,
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="[PATH]", help="A file in the artifact to print, or a directory to list."
        ),
    ] = None,
    as_list: Annotated[
        bool, typer.Option("--list", "-l", help="List all entries, or those below PATH.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary and all entries as one JSON object.")
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Show the content of an artifact.

    Prints a summary, or the file or directory at PATH. Reads initramfs archives and images of ext2,
    ext3, ext4, squashfs and erofs, whoever made them. The exit code is 1 if a sealed disk is
    damaged.
    """
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
