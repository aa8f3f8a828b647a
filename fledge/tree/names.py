"""Names and paths, which are bytes: taken apart, and made safe to show."""

from __future__ import annotations

MAX_SHOWN = 200
"""Characters of a path that a message shows."""


def split_path(path: bytes) -> list[bytes]:
    """The components of a path, normalised as text: ``..`` never climbs above the root."""
    named = path.split(b"/")
    if _NO_NAMES.isdisjoint(named):
        return named
    parts: list[bytes] = []
    for part in named:
        if part == b"..":
            del parts[-1:]
        elif part not in _NO_NAMES:
            parts.append(part)
    return parts


_NO_NAMES = frozenset((b"", b".", b".."))


def printable(name: bytes | str) -> str:
    """A name for a message: what is not printable UTF-8 is escaped, so no terminal obeys it."""
    text = name if isinstance(name, str) else name.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
