"""The command ``fledge check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fledge.cli import views
from fledge.cli.options import (
    DEFAULT_CONFIG,
    EXIT_CODES,
    Command,
    ConfigOption,
    ManifestOption,
    PlatformOption,
    VerboseOption,
    new_app,
)
from fledge.cli.reporters import reported
from fledge.cli.units import path_text
from fledge.machine.check import KernelCheck
from fledge.operations.check import check
from fledge.operations.kernel import check_kernel, check_target
from fledge.session import Session
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
    platform: PlatformOption = None,
    manifest: ManifestOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Validate the configuration, and check a kernel against it.

    Finds all that a build would find wrong with files of this machine. Downloads nothing, and
    writes nothing but the cache. With an artifact, checks the kernel against that and reads no
    configuration. The exit code is 1 if the kernel does not boot the artifact.
    """
    if artifact and kernel is None:
        raise typer.BadParameter("an artifact needs a kernel to check; name it with --kernel")
    with reported(verbose) as reporter:
        if artifact and kernel is not None:
            found: KernelCheck | None = check_kernel(kernel, artifact)
        else:
            session = Session.default(reporter=reporter, offline=True)
            valid = check(config, platform=platform, manifest=manifest, session=session)
            print(f"{path_text(config)} is valid")
            found = check_target(valid, kernel)
        for line in views.kernel_lines(found) if found else ():
            print(printable(line))
    if found and not found.boots:
        raise typer.Exit(1)
