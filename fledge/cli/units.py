"""Parses sizes and durations, and formats paths."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

from fledge.errors import ConfigError
from fledge.tree.names import printable

SIZES = {
    **{"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40},
    **{"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12},
    **{"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40},
}
"""Bytes by unit, as GNU coreutils have them. The case of letters does not matter."""

DURATIONS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_size(text: str) -> int:
    """Parse a size such as ``5GiB`` or ``1.5 GB``, and return bytes. Raises `ConfigError`."""
    units = {unit.lower(): size for unit, size in SIZES.items()}
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?([a-z]{1,3})", text.lower())
    if match is None or match[2] not in units:
        raise _unreadable(text, "size", SIZES, "30GiB")
    return int(Fraction(match[1]) * units[match[2]])


def parse_duration(text: str) -> int:
    """Parse a duration such as ``30d``, and return seconds. Raises `ConfigError`."""
    match = re.fullmatch("([0-9]{1,9})(" + "|".join(DURATIONS) + ")", text)
    if match is None:
        raise _unreadable(text, "duration", DURATIONS, "30d")
    return int(match[1]) * DURATIONS[match[2]]


def path_text(path: Path) -> str:
    """Return a path to print: for a person without control characters, for a script as it is."""
    return printable(str(path)) if sys.stdout.isatty() else str(path)


def _unreadable(text: str, quantity: str, units: Iterable[str], example: str) -> ConfigError:
    return ConfigError(
        f"{printable(text)!r} is not a {quantity}",
        f"Write a number and one of {', '.join(units)}, such as {example}.",
    )
