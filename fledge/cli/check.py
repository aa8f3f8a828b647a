"""The command ``fledge check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fledge.cli import views
from fledge.cli.failures import explained
from fledge.cli.options import (
    DEFAULT_CONFIG,
    EXIT_CODES,
    Command,
    ConfigOption,
    VerboseOption,
    new_app,
)
from fledge.cli.units import path_text
from fledge.machine.check import KernelCheck
from fledge.operations.check import check, check_kernel, check_target
from fledge.tree.names import printable

app = new_app()


@app.command(cls=Command, epilog=EXIT_CODES)
def run(
    artifact: Annotated[
        Path | None,
        typer.Argument(
            metavar="[ARTIFACT]",
            help="The artifact that the kernel is to boot.",
            show_default="that of the configuration",
        ),
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    kernel: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="The kernel: debian, firecracker, kata, libkrun, volant, or the path of a kernel"
            " image or a .config.",
            show_default="[target] kernel",
        ),
    ] = None,
    verbose: VerboseOption = False,
) -> None:
    """Validate the configuration, and check a kernel against it.

    Looks at the files that the configuration names; downloads and writes nothing. With an
    artifact, checks the kernel against that and reads no configuration. The exit code is 1 if the
    kernel does not boot the artifact.
    """
    if artifact and kernel is None:
        raise typer.BadParameter("an artifact needs a kernel to check; name it with --kernel")
    with explained(verbose):
        if artifact and kernel is not None:
            found: KernelCheck | None = check_kernel(kernel, artifact)
        else:
            valid = check(config)
            print(f"{path_text(config)} is valid")
            found = check_target(valid, kernel)
        for line in views.kernel_lines(found) if found else ():
            print(printable(line))
    if found and not found.boots:
        raise typer.Exit(1)
