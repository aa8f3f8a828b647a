"""Explains paths that name no file here, because a shell or Windows would understand them."""

from __future__ import annotations

import re

_EXPLANATIONS = (
    (r"(\w+://)", "{} begins a URL; write the path of a file"),
    (r"([A-Za-z]:)[\\/]", "{} is a drive of Windows; write a path of this machine"),
    (r"(~)(?:/|\Z)", "{} is not expanded; write the whole path"),
    (r".*?(\$\w+|\$\{[^}]*\}|%\w+%)", "{} is not expanded; write the whole path"),
    (r".*?([*?]|\[.+\]|\{[^}]*,[^}]*\})", "{} is not expanded; name a folder, or each file"),
    (r".*?[\x00-\x1f\x7f]", 'a \\ in "…" begins an escape, here of a control character; write /'),
    (r".*?\\", "folders are separated by /, not by \\"),
    (r"\s|.*\s\Z", "the path begins or ends with a space"),
)
"""Patterns of the beginnings of such paths, and their explanations."""


def why_missing(path: str) -> str | None:
    """Say what is wrong with a path that names no file. None: nothing that its text tells."""
    for pattern, explanation in _EXPLANATIONS:
        if found := re.match(pattern, path, re.DOTALL):
            return explanation.format(*found.groups())
    return None
