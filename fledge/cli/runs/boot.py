"""Runs the command ``fledge boot``."""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fledge.cli.projects import locate
from fledge.cli.reporters import reported
from fledge.cli.units import parse_size
from fledge.errors import ConfigError
from fledge.operations.boot import Console, Gate, Machine, boot, boot_command
from fledge.session import Session


def run(
    artifact: Path,
    kernel: Path | None,
    volant: bool,
    expect: list[str] | None,
    probe: str | None,
    timeout: float | None,
    publish: list[str] | None,
    memory: str | None,
    cpus: int | None,
    append: str,
    manifest: Path | None,
    print_command: str | None,
    config: Path | None,
    offline: bool,
    verbose: bool,
) -> None:
    """Boot an artifact in QEMU, as Volant does."""
    with reported(verbose) as reporter:
        session = Session.default(reporter=reporter, offline=offline)
        located = locate(config)
        machine = Machine(
            kernel=kernel,
            config=located if config or located.exists() else None,
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
