"""Parses sizes and durations, and formats paths."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from fledge.errors import ConfigError
from fledge.tree.names import printable

SIZES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
DURATIONS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_size(text: str) -> int:
    """Parse a size such as ``5GiB``, and return bytes. Raises `ConfigError`."""
    return _parse(text, SIZES, "size")


def parse_duration(text: str) -> int:
    """Parse a duration such as ``30d``, and return seconds. Raises `ConfigError`."""
    return _parse(text, DURATIONS, "duration")


def path_text(path: Path) -> str:
    """Return a path to print: for a person without control characters, for a script as it is."""
    return printable(str(path)) if sys.stdout.isatty() else str(path)


def _parse(text: str, units: dict[str, int], quantity: str) -> int:
    match = re.fullmatch("([0-9]{1,9})(" + "|".join(units) + ")", text)
    if not match:
        raise ConfigError(
            f"{printable(text)!r} is not a {quantity}",
            f"Write a whole number and one of {', '.join(units)}, such as 30{list(units)[3]}.",
        )
    return int(match[1]) * units[match[2]]
