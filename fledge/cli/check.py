"""The command ``fledge check``."""

from __future__ import annotations

from typing import Annotated

import typer

from fledge.cli import runs
from fledge.cli.options import (
    EXIT_CODES,
    Command,
    ConfigsOption,
    ManifestOption,
    PlatformOption,
    QuietOption,
    SetOption,
    VerboseOption,
    new_app,
)

app = new_app()


@app.command(cls=Command, epilog=EXIT_CODES)
def run(
    projects: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ARTIFACT|DIR|FILE]...",
            help="The artifact that the kernel is to boot; or folders with a fledge.toml, such"
            " files, or patterns.",
            show_default="that of the configuration",
        ),
    ] = None,
    config: ConfigsOption = None,
    kernel: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="The kernel: debian, firecracker, kata, libkrun, volant, or the path of a kernel"
            " image or a .config.",
            show_default="[target] kernel",
        ),
    ] = None,
    platform: PlatformOption = None,
    manifest: ManifestOption = None,
    changes: SetOption = None,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Validate the configuration, and check a kernel against it.

    Finds all that a build would find wrong with files of this machine. Downloads nothing, and
    writes nothing but the cache. With an artifact, checks the kernel against that and reads no
    configuration. The exit code is 1 if the kernel does not boot the artifact.
    """
    runs.check.run(projects, config, kernel, platform, manifest, changes, verbose, quiet)
