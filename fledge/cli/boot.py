"""The command ``fledge boot``."""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from fledge.cli.options import (
    DEFAULT_CONFIG,
    EXIT_CODES,
    ArtifactArgument,
    Command,
    ConfigOption,
    OfflineOption,
    VerboseOption,
    new_app,
)
from fledge.cli.reporters import reported
from fledge.cli.units import parse_size
from fledge.errors import ConfigError
from fledge.operations.boot import Console, Gate, Machine, boot, boot_command
from fledge.session import Session

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
    config: ConfigOption = DEFAULT_CONFIG,
    offline: OfflineOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Boot an artifact in QEMU, as Volant does.

    The console is on the terminal; Ctrl-A X or Ctrl-C ends the guest. With --expect or --probe,
    ends as soon as all of it was seen; the exit code is 6 if it was not, and 1 if the guest died.
    Never writes to the artifact.
    """
    with reported(verbose) as reporter:
        session = Session.default(reporter=reporter, offline=offline)
        machine = Machine(
            kernel=kernel,
            config=config if config != DEFAULT_CONFIG or config.exists() else None,
            manifest=manifest,
            memory=_mebibytes(memory) if memory else None,
            cpus=cpus,
            publish=publish or (),
            append=append,
            volant=volant,
        )
        if print_command:
            print(boot_command(artifact, print_command, machine=machine, session=session))
            return
        gate = Gate(expect=expect or (), probe=probe, timeout=timeout)
        with _keyboard() as keyboard, _screen() as show:
            console = Console(show, keyboard)
            boot(artifact, machine=machine, gate=gate, console=console, session=session)


def _mebibytes(text: str) -> int:
    """Parse the size of a memory. Raises `ConfigError`."""
    size = parse_size(text) >> 20
    if not size:
        raise ConfigError(f"{text} is less than 1MiB of memory", "Write a size such as 512MiB.")
    return size


@contextmanager
def _screen() -> Iterator[Callable[[bytes], None]]:
    """Yield what writes the console to standard output. At the end, complete its last line."""
    last = b"\n"

    def show(data: bytes) -> None:
        nonlocal last
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        last = data[-1:]

    try:
        yield show
    finally:
        if last != b"\n":
            show(b"\n")


@contextmanager
def _keyboard() -> Iterator[int | None]:
    """Give every key to the guest at once, but Ctrl-C, while the block runs.

    Yields the descriptor of the keyboard; None if standard input is not a terminal, or one that
    belongs to another job.
    """
    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
        foreground = os.tcgetpgrp(descriptor) == os.getpgrp()
    except (OSError, ValueError, AttributeError, termios.error):
        foreground = False
    if not foreground:
        yield None
        return
    with suppress(termios.error):  # the terminal may be gone
        try:
            now = termios.tcgetattr(descriptor)
            now[3] &= ~(termios.ICANON | termios.ECHO | termios.IEXTEN)
            now[0] &= ~(termios.ICRNL | termios.IXON)
            for key in (termios.VQUIT, termios.VSUSP):
                now[6][key] = b"\0"
            termios.tcsetattr(descriptor, termios.TCSADRAIN, now)
            yield descriptor
        finally:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
