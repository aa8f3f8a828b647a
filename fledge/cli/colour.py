"""Decides whether output has colours: by ``--color``, the environment, and the terminal."""

from __future__ import annotations

import sys
from enum import Enum
from typing import Any

from typer._click.globals import get_current_context

_KEY = "fledge.color"


class When(str, Enum):
    """The values of ``--color``."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


def remember(context: Any, _: Any, value: str | None) -> None:
    """Keep the value of ``--color`` for the command that runs. None: it is not given."""
    if value is not None:
        context.meta[_KEY] = value


def stderr_has_colour() -> bool:
    """Return whether standard error gets colours.

    ``--color`` decides. By default NO_COLOR (no-color.org) forbids them, FORCE_COLOR
    (force-color.org) demands them, and otherwise a terminal gets them unless it is dumb.
    """
    context = get_current_context(silent=True)
    chosen = context.meta.get(_KEY, When.AUTO.value) if context else When.AUTO.value
    if chosen != When.AUTO.value:
        return bool(chosen == When.ALWAYS.value)
    # Imported late, because commands that do not fail need not load it.
    from fledge.host.settings import Settings  # noqa: PLC0415

    settings = Settings.from_environment()
    return settings.has_colour and (sys.stderr.isatty() or settings.forces_colour)
