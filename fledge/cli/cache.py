"""The command ``fledge cache`` and its subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from fledge.cli import runs
from fledge.cli.options import EXIT_CODES, Command, VerboseOption, new_app

app = new_app("Show, verify, prune or clear the cache.")


@app.callback(invoke_without_command=True, epilog=EXIT_CODES)
def show(context: typer.Context, verbose: VerboseOption = False) -> None:
    """Show, verify, prune or clear the cache.

    Without a subcommand, shows what is in it.
    """
    if not context.invoked_subcommand:
        runs.cache.show(verbose)


@app.command(cls=Command, epilog=EXIT_CODES)
def verify(verbose: VerboseOption = False) -> None:
    """Verify all files in the cache; remove and list damaged ones."""
    runs.cache.verify(verbose)


@app.command(cls=Command, epilog=EXIT_CODES)
def prune(
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="AGE", help="Remove files that were unused for this long, such as 30d."
        ),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Remove the least recently used files until this size is left, such as 5GiB.",
        ),
    ] = None,
    registry: Annotated[
        str | None,
        typer.Option(
            metavar="REPOSITORY",
            help="Remove builds from a build cache in a registry instead, oldest first.",
        ),
    ] = None,
    verbose: VerboseOption = False,
) -> None:
    """Remove files from the cache.

    Files that a running build uses are kept. What killed builds have left in the working directory
    and in the folder for temporary files is removed, too.
    """
    runs.cache.prune(older_than, max_size, registry, verbose)


@app.command(cls=Command, epilog=EXIT_CODES)
def clear(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Remove all files from the cache.

    Files that a running build uses are kept. Asks on a terminal; elsewhere it needs --yes.
    """
    runs.cache.clear(yes, verbose)


@app.command("dir", cls=Command, epilog=EXIT_CODES)
def folder(verbose: VerboseOption = False) -> None:
    """Print the folder of the cache."""
    runs.cache.show_folder(verbose)
