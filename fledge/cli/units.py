"""Sizes and durations as people write them."""

from __future__ import annotations

import re

from fledge.errors import ConfigError
from fledge.tree.names import printable

SIZES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
DURATIONS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_size(text: str) -> int:
    """``5GiB`` in bytes. Raises `ConfigError`."""
    return _parse(text, SIZES, "size")


def parse_duration(text: str) -> int:
    """``30d`` in seconds. Raises `ConfigError`."""
    return _parse(text, DURATIONS, "duration")


def _parse(text: str, units: dict[str, int], what: str) -> int:
    match = re.fullmatch("([0-9]{1,9})(" + "|".join(units) + ")", text)
    if not match:
        raise ConfigError(
            f"{printable(text)!r} is no {what}",
            f"Write a whole number and one of {', '.join(units)}, such as 30{list(units)[3]}.",
        )
    return int(match[1]) * units[match[2]]
