"""Prints error messages."""

from __future__ import annotations

import os
import sys
import textwrap

import typer

from fledge.cli.colour import stderr_has_colour


def print_error(first: str, *more: str) -> None:
    """Print lines without control characters on standard error, as one error message.

    On a terminal long lines are broken between words, so that digests, URLs and paths stay whole.
    """
    prefix = "error: "
    lines = [prefix + first, *(f"  {line}" for line in more)]
    if sys.stderr.isatty():
        width = max(20, os.get_terminal_size(sys.stderr.fileno()).columns)
        lines = [part for line in lines for part in _wrapped(line, width)]
    text = "\n".join(lines)
    has_colour = stderr_has_colour()
    if has_colour:
        text = typer.style(prefix, fg="red", bold=True) + text.removeprefix(prefix)
    typer.echo(text, err=True, color=has_colour)


def _wrapped(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    return textwrap.wrap(
        line,
        width,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
