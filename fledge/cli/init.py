"""The command ``fledge init``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fledge.cli import runs
from fledge.cli.options import EXIT_CODES, Command, OfflineOption, VerboseOption, new_app

app = new_app()


class Service(str, Enum):
    """The CI services."""

    GITHUB = "github"
    GITLAB = "gitlab"


@app.command(cls=Command, epilog=EXIT_CODES)
def run(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[[DIR] WHAT]",
            help="The folder to start in, and what the plugin is made of: the name of an image, or"
            " the path of a Dockerfile, a static program or a script for sh.",
            show_default="this folder, and the one thing of that kind in it",
        ),
    ] = None,
    ci: Annotated[
        Service | None,
        typer.Option(help="Write a recipe for this CI service, too.", show_default=False),
    ] = None,
    from_original: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Change this config of the original fledge. If it is called fledge.toml, it is"
            " kept as fledge.original.toml.",
            show_default=False,
        ),
    ] = None,
    offline: OfflineOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Start a project: write a fledge.toml that builds.

    Beside it, write its JSON Schema for editors, and what git should ignore. An image is looked up
    to know its ports; without a network, they are left out. No file is overwritten.
    """
    runs.init.run(arguments or [], ci.value if ci else None, from_original, offline, verbose)
