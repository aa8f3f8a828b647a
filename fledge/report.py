"""How the library tells its caller what it is doing.

The library calls a `Reporter`; this base class ignores everything, and the command line
passes one that draws. Nothing below the command line prints.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Step:
    """One step of a build. ``detail`` is what it found out, for the line that closes it."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.detail = ""


class Transfer:
    """One piece of work that is counted in bytes, such as a download."""

    def advance(self, count: int) -> None:
        """``count`` more bytes are done."""

    def restart(self, done: int, total: int | None) -> None:
        """Count from ``done`` again, of ``total`` bytes (None: unknown)."""


class Reporter:
    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Wrap one step of a build; an exception leaves it unfinished."""
        yield Step(title)

    @contextmanager
    def transfer(self, label: str) -> Iterator[Transfer]:
        """Wrap work of a size that may only become known later."""
        yield Transfer()

    def note(self, message: str) -> None:
        """Something worth knowing that is no error: a retry, an input without checksum."""


def human_size(size: int) -> str:
    """A number of bytes as people read it: ``1.5 MiB``."""
    value = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{size} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
