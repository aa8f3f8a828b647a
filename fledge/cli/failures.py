"""Ends a command that fails, with a message and an exit code."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from fledge.cli import variables
from fledge.cli.interrupts import die_of, interruptible
from fledge.cli.messages import print_error
from fledge.cli.streams import OutputError
from fledge.errors import ConfigError, FledgeError, OfflineError, explained_memory
from fledge.host.signals import GuestInterrupt, LateInterrupt, PartialInterrupt
from fledge.tree.names import printable


@contextmanager
def explained(verbose: bool) -> Iterator[None]:
    """Turn an exception in the block into a message on standard error and an exit code.

    With ``verbose``, also print the traceback of a failure of fledge itself, and its causes.
    """
    with interruptible():
        yield from _explained(verbose)


def _explained(verbose: bool) -> Iterator[None]:
    try:
        with explained_memory("this command"):
            yield
    except KeyboardInterrupt as interrupt:
        end_interrupted(interrupt)
    except OutputError:
        raise  # for all commands alike, in `fledge.cli.app.main`
    except FledgeError as error:
        details = list(error.details)
        if isinstance(error, ConfigError | OfflineError) and (used := variables.used()):
            details.append(f"Set in the environment: {', '.join(used)}")
        _print_error(error.message, error.hint, details)
        raise typer.Exit(error.exit_code) from error
    except Exception as error:
        if verbose:
            # Indented, because the message of an exception may look like a message of fledge.
            for line in traceback.format_exc().split("\n"):
                typer.echo(f"  {printable(line)}".rstrip(), err=True)
        message = f"internal error: {type(error).__name__}: {error}"
        _print_error(message, "Run the command again with -v and report its output.")
        raise typer.Exit(1) from error


def end_interrupted(interrupt: KeyboardInterrupt, hint: str = "") -> None:
    """Say what was written or ended, and die of the signal that interrupted fledge."""
    # Runs the clean-up of blocks that were interrupted on entry or exit.
    traceback.clear_frames(interrupt.__traceback__)
    if isinstance(interrupt, LateInterrupt):
        print_error(f"interrupted; {printable(os.fsencode(interrupt.output))} is written")
    elif isinstance(interrupt, PartialInterrupt):
        print_error(f"interrupted; {interrupt.done} of {interrupt.total} are done")
    elif isinstance(interrupt, GuestInterrupt):
        print_error("interrupted; the guest was ended, and nothing of it is left")
    else:
        print_error("interrupted; nothing was written", *([hint] if hint else []))
    die_of(interrupt.args[0] if interrupt.args else signal.SIGINT)


def _print_error(message: str, hint: str, details: Sequence[str] = ()) -> None:
    print_error(*map(printable, [message, *details, *([hint] if hint else [])]))
