"""Splits paths, which are bytes, and makes names safe to print."""

from __future__ import annotations

MAX_SHOWN = 200
"""Maximum characters of a path in a message."""


def split_path(path: bytes) -> list[bytes]:
    """Split a path into components and resolve ``.`` and ``..`` without looking at any symlink.

    ``..`` at the root stays at the root.
    """
    components = path.split(b"/")
    if _SPECIAL_COMPONENTS.isdisjoint(components):
        return components
    parts: list[bytes] = []
    for part in components:
        if part == b"..":
            del parts[-1:]
        elif part not in _SPECIAL_COMPONENTS:
            parts.append(part)
    return parts


_SPECIAL_COMPONENTS = frozenset((b"", b".", b".."))


def printable(name: bytes | str) -> str:
    """Escape everything in a name that is not printable UTF-8, such as terminal control codes."""
    text = name if isinstance(name, str) else name.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
