"""The command ``fledge help``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fledge.cli.options import EXIT_CODES, Command, new_app

app = new_app()


def complete_command(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the commands whose names begin so."""
    root: Any = ctx.find_root().command
    return [name for name in root.commands if name.startswith(incomplete)]


@app.command(cls=Command, epilog=EXIT_CODES)
def run(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[COMMAND]...",
            help="A command, such as build or cache prune.",
            autocompletion=complete_command,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show the help of fledge or of a command."""
    root = context.find_root()
    command: Any = root.command
    command.main([*(names or ()), "--help"], prog_name=root.info_name)
