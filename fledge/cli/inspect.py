"""The command ``fledge inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fledge.cli import runs
from fledge.cli.options import EXIT_CODES, ArtifactArgument, Command, VerboseOption, new_app

app = new_app()

DEFAULT_DEPTH = 2
"""Levels of folders that ``--tree`` shows."""


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
    as_tree: Annotated[
        bool, typer.Option("--tree", help="Show the sizes of folders, or of those below PATH.")
    ] = False,
    depth: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="How deep --tree goes.", show_default=str(DEFAULT_DEPTH)
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="List the N largest files, or those below PATH."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page for a browser, with a map of all sizes."),
    ] = None,
    verbose: VerboseOption = False,
) -> None:
    """Show the content of an artifact.

    Prints a summary, or the file or directory at PATH. Reads initramfs archives and images of ext2,
    ext3, ext4, squashfs and erofs, whoever made them. The exit code is 1 if a sealed disk is
    damaged.
    """
    views = {
        "--list": as_list,
        "--json": as_json,
        "--tree": as_tree,
        "--top": top is not None,
        "--html": html is not None,
    }
    given = [name for name, is_given in views.items() if is_given]
    if len(given) > 1:
        raise typer.BadParameter(f"{given[0]} and {given[1]} exclude each other")
    if depth is not None and not as_tree:
        raise typer.BadParameter("--depth needs --tree")
    if html is not None and path is not None:
        raise typer.BadParameter("--html shows the whole artifact; leave out PATH")
    if html is not None:
        runs.inspect.write_page(artifact, html, verbose)
    elif as_tree or top is not None:
        runs.inspect.show_sizes(artifact, path, depth or DEFAULT_DEPTH, top, verbose)
    else:
        runs.inspect.run(artifact, path, as_list, as_json, verbose)
