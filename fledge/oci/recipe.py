"""Finds the instruction of a Dockerfile at which a builder has failed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import msgspec

FAILURES = tuple(
    re.compile(pattern)
    for pattern in (
        r"^Error: .*?at STEP \"(.+?)\":",  # podman and buildah
        r"^error building at STEP \"(.+?)\":",
        r"^ > \[[^\]]*\] (.+?):?$",  # BuildKit
        r"^STEP [0-9]+/[0-9]+: (.+)$",
        r"^\[[0-9]+/[0-9]+\] STEP [0-9]+/[0-9]+: (.+)$",
        r"^#[0-9]+ \[[^\]]*\] (.+)$",
    )
)
"""How builders name an instruction, those first that say that it failed."""

VARIABLE = re.compile(r"\$\{[^}]*\}|\$\w+")


class Instruction(msgspec.Struct, frozen=True):
    """One instruction."""

    text: str
    """On one line."""
    line: int | None
    """The number of its first line; None if it is not known."""


def failing_instruction(said: Iterable[str], dockerfile: str) -> Instruction | None:
    """Return the instruction that the last lines of a builder blame; None if they blame none."""
    lines = list(said)
    for pattern in FAILURES:
        found = next((each for line in lines[::-1] if (each := pattern.search(line))), None)
        if found:
            blamed = " ".join(found[1].split())
            alike = [each for each in instructions(dockerfile) if _is_like(each.text, blamed)]
            return max(alike, key=lambda each: len(each.text), default=Instruction(blamed, None))
    return None


def instructions(dockerfile: str) -> Iterator[Instruction]:
    """Yield the instructions of a Dockerfile, with lines that end in a backslash joined."""
    parts: list[str] = []
    first = 0
    for number, line in enumerate(dockerfile.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        first = first if parts else number
        is_continued = line.rstrip().endswith("\\")
        parts.append(line.rstrip().removesuffix("\\") if is_continued else line)
        if not is_continued:
            yield Instruction(" ".join(" ".join(parts).split()), first)
            parts = []


def _is_like(text: str, blamed: str) -> bool:
    """Return whether a builder means an instruction, in which it may have replaced variables.

    podman and buildah write a command without the brackets of its exec form, and without mounts.
    """
    if text.partition(" ")[0].upper() != blamed.partition(" ")[0].upper():
        return False
    position = 0
    for part in VARIABLE.split(text):
        words = re.findall(r"[^\s\[\]\",]+", re.sub(r"--\S+\s", "", part))
        for word in words:
            found = blamed.find(word, position)
            if found < 0:
                return False
            position = found + len(word)
    return True
