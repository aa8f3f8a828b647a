"""The command ``fledge inspect``."""

from __future__ import annotations

from typing import Annotated

import typer

from fledge.cli import runs
from fledge.cli.options import EXIT_CODES, ArtifactArgument, Command, VerboseOption, new_app

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
    runs.inspect.run(artifact, path, as_list, as_json, verbose)
