"""Writes the table of variables in docs/reference/environment.md.

It is made from the docstrings of the properties in fledge/host/settings.py: each that names a
``$VARIABLE`` is a row.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from fledge.host import settings

PAGE = Path(__file__).resolve().parents[1] / "docs/reference/environment.md"
BEGIN, END = "<!-- scripts/reference writes these rows -->\n\n", "\n<!-- end -->"


def rows() -> Iterator[str]:
    """Yield the rows, in the order of the properties."""
    for member in vars(settings.Settings).values():
        text = inspect.getdoc(member.fget) if isinstance(member, property) else None
        names = dict.fromkeys(re.findall(r"\$([A-Z_]+)", text or ""))
        if text and names:
            yield f"| {', '.join(f'`{name}`' for name in names)} | {_for_people(text)} |"


def _for_people(docstring: str) -> str:
    """Leave out what a caller has to know, and write constants as their values."""
    text = " ".join(docstring.split()).partition(" Raises ")[0].replace("``", "`")
    text = re.sub(r"; None if [^.;]*(?=[.;])", "", text)
    text = re.sub(r" None if [^.]*\.", "", text)
    text = text.replace(" (None)", "")
    return re.sub("`([A-Z_]+)`", lambda name: _value(name[1]), text).replace("|", r"\|")


def _value(name: str) -> str:
    return f"`{getattr(settings, name, name)}`"


def page(text: str) -> str:
    """Return the page with the rows of today."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    head = "| variable | meaning |\n| --- | --- |\n"
    return before + begin + head + "\n".join(rows()) + "\n" + end + after


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
