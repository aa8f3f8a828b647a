"""Splits paths, which are bytes, and makes names safe to print and easy to find."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

MAX_SHOWN = 200
"""Maximum characters of a path in a message."""
MAX_COMPARED = 1000
"""Maximum names that are compared with one that is not among them."""
MAX_SUGGESTED = 5
"""Maximum names in a suggestion."""

HASH_TREE_SUFFIX = ".verity"
"""The end of the name of a file with the hash tree of a disk, after the whole name of that."""


def split_path(path: bytes) -> list[bytes]:
    """Split a path into components and resolve ``.`` and ``..`` without looking at any symlink.

    ``..`` at the root stays at the root.
    """
    components = path.split(b"/")
    if SPECIAL_COMPONENTS.isdisjoint(components):
        return components
    parts: list[bytes] = []
    for part in components:
        if part == b"..":
            del parts[-1:]
        elif part not in SPECIAL_COMPONENTS:
            parts.append(part)
    return parts


SPECIAL_COMPONENTS = frozenset((b"", b".", b".."))


def printable(name: bytes | str) -> str:
    """Escape everything in a name that is not printable UTF-8, such as terminal control codes."""
    text = name if isinstance(name, str) else name.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def suggestion(wanted: str, known: Iterable[str]) -> str:
    """Return a hint for a person who wrote a name that is not among the known ones.

    It names the one that differs only in case or in the ``v`` before a version, or else similar
    ones, or else the highest versions. It is empty if nothing is known. Names may come from a
    server: those that are long or not printable do not count.
    """
    names = [name for name in known if len(name) <= MAX_SHOWN and name.isprintable()]
    names = names[:MAX_COMPARED]
    if same := [name for name in names if _plain(name) == _plain(wanted)]:
        return f"Did you mean {same[0]}?"
    if close := difflib.get_close_matches(wanted, names, MAX_SUGGESTED):
        return _there_are(close, 0)
    highest = sorted(names, key=by_number, reverse=True)
    return _there_are(highest[:MAX_SUGGESTED], len(highest[MAX_SUGGESTED:])) if names else ""


def _plain(version: str) -> str:
    return version.lower().removeprefix("v")


def _there_are(names: list[str], others: int) -> str:
    more = f" and {others} more" if others else ""
    return f"There {'is' if len(names) == 1 else 'are'} {', '.join(names)}{more}."


def by_number(name: str) -> tuple[bool, str]:
    """Return a key that sorts versions by their numbers, after all other names."""
    plain = _plain(name)
    padded = re.sub("[0-9]+", lambda number: number[0].zfill(MAX_SHOWN), plain)
    return plain[:1].isdecimal(), padded
