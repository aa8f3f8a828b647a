"""Ends a command that fails: with a message and an exit code, or by a signal."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from fledge.cli.interrupts import ERROR, die_of, end_interrupted
from fledge.errors import FledgeError
from fledge.tree.names import printable


@contextmanager
def explained(verbose: bool) -> Iterator[None]:
    """Turn an exception in the block into a message on standard error and an exit code.

    With ``verbose``, also print the traceback of the exception and its causes.
    """
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        end_interrupted(interrupt)
    except FledgeError as error:
        if verbose:
            traceback.print_exc()
        _print_error(error.message, error.hint)
        raise typer.Exit(error.exit_code) from error
    except Exception as error:
        if verbose:
            traceback.print_exc()
        message = f"internal error: {type(error).__name__}: {error}"
        _print_error(message, "Run the command again with -v and report its output.")
        raise typer.Exit(1) from error


@contextmanager
def piped() -> Iterator[None]:
    """Die of SIGPIPE, as other programs do, if the reader of the output exits: ``| head``."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        die_of(signal.SIGPIPE)


def _print_error(message: str, hint: str) -> None:
    lines = message.splitlines() + ([f"  {hint}"] if hint else [])
    typer.echo(ERROR + "\n".join(map(printable, lines)), err=True)
