"""The command ``fledge boot``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fledge.cli import runs
from fledge.cli.options import (
    EXIT_CODES,
    ArtifactArgument,
    Command,
    ConfigOption,
    OfflineOption,
    VerboseOption,
    new_app,
)

app = new_app()


@app.command(cls=Command, epilog=EXIT_CODES)
def run(
    artifact: ArtifactArgument,
    kernel: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The kernel image.",
            show_default="FLEDGE_KERNEL, [target] kernel, or the kernel of this machine",
        ),
    ] = None,
    volant: Annotated[
        bool,
        typer.Option("--volant", help="Unpack an initramfs over what Volant's kernel brings."),
    ] = False,
    expect: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REGEX",
            help="End with 0 once a line of the console matches. Can be repeated: each has to.",
        ),
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(metavar="URL", help="End with 0 once this URL answers with 200 to 399."),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0.001,
            help="How long the guest may run.",
            show_default="300 with --expect or --probe",
        ),
    ] = None,
    publish: Annotated[
        list[str] | None,
        typer.Option(
            "--publish",
            "-p",
            metavar="HOST:GUEST",
            help="Make a TCP port of the guest one of 127.0.0.1. Can be repeated. Without it, the"
            " guest has no network; with it, it still cannot begin a connection.",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Such as 2GiB.", show_default="the manifest's, or 512MiB"
        ),
    ] = None,
    cpus: Annotated[
        int | None, typer.Option(metavar="N", min=1, show_default="the manifest's, or 1")
    ] = None,
    append: Annotated[
        str, typer.Option(metavar="TEXT", help="More for the kernel's command line.")
    ] = "",
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest",
            "-m",
            metavar="FILE",
            help="The plugin manifest.",
            show_default="ARTIFACT.manifest.json beside the artifact",
        ),
    ] = None,
    print_command: Annotated[
        str | None,
        typer.Option(
            metavar="HYPERVISOR",
            help="Do not boot, but print the command for qemu or cloud-hypervisor, or the"
            " configuration for firecracker.",
        ),
    ] = None,
    config: ConfigOption = None,
    offline: OfflineOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Boot an artifact in QEMU, as Volant does.

    The console is on the terminal; Ctrl-A X or Ctrl-C ends the guest. With --expect or --probe,
    ends as soon as all of it was seen; the exit code is 6 if it was not, and 1 if the guest died.
    Never writes to the artifact.
    """
    runs.boot.run(
        artifact,
        kernel,
        volant,
        expect,
        probe,
        timeout,
        publish,
        memory,
        cpus,
        append,
        manifest,
        print_command,
        config,
        offline,
        verbose,
    )
