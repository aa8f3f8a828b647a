"""Reads what a Dockerfile declares, and finds the instruction at which a builder has failed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import msgspec

from fledge.errors import ConfigError, unreadable_argument
from fledge.tree.regular import read_regular

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

MAX_SIZE = 1 << 20
"""Maximum bytes of a Dockerfile whose declarations are read."""

OTHER_SYNTAX = re.compile(
    r"\A\ufeff?(?:\s*#.*\n)*\s*#\s*(?:escape\s*=|syntax\s*=\s*(?!docker/dockerfile\b|\S*/docker/dockerfile\b))",
    re.IGNORECASE,
)
"""The directives after which a Dockerfile may mean something else: docs.docker.com, Dockerfile
reference, "Parser directives"."""

STAGE = re.compile(r"FROM (?:--\S+ )*\S+(?: AS (\S+))?$", re.IGNORECASE)
ARGUMENT = re.compile(r"(?<=\s)[A-Za-z_]\w*(?==|\s|$)")
QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
MOUNT = re.compile(r"--mount=(\S+)")


class Instruction(msgspec.Struct, frozen=True):
    """One instruction."""

    text: str
    """On one line."""
    line: int | None
    """The number of its first line; None if it is not known."""


class Declarations(msgspec.Struct, frozen=True):
    """What a Dockerfile declares that a build can choose or set."""

    stages: tuple[str, ...]
    """The names of the stages, in order; of one without a name, its number."""
    arguments: frozenset[str]
    """The names that ARG instructions declare."""
    secrets: frozenset[str]
    """The IDs of the secrets that RUN instructions mount."""

    def has_stage(self, target: str) -> bool:
        """Return whether a builder finds a stage by that name or number."""
        numbers = map(str, range(len(self.stages)))
        return target.lower() in {*numbers, *(each.lower() for each in self.stages)}


def read_declarations(dockerfile: Path) -> Declarations | None:
    """Read what a Dockerfile declares. None: only the builder can tell.

    Raises `ConfigError` if there is no such file or no instruction in it, `FledgeError` if it
    cannot be read.
    """
    try:
        raw = read_regular(dockerfile, MAX_SIZE + 1)
    except OSError as error:
        raise unreadable_argument(dockerfile, error) from error
    text = raw.decode("utf-8", "replace").removeprefix("\ufeff")
    found = [each.text for each in instructions(text)]
    if not found:
        raise ConfigError(
            f"{dockerfile} is empty: it has no instruction",
            "Begin it with FROM and the image to start from.",
        )
    if len(raw) > MAX_SIZE or OTHER_SYNTAX.match(text):
        return None
    return declarations(found)


def declarations(texts: Iterable[str]) -> Declarations | None:
    """Return what instructions declare; None if variables decide about a name or an ID."""
    stages: list[str] = []
    arguments: set[str] = set()
    secrets: set[str] = set()
    for text in texts:
        if stage := STAGE.match(text):
            stages.append(stage[1] or str(len(stages)))
        keyword = text.partition(" ")[0].upper()
        if keyword == "ARG":
            arguments.update(ARGUMENT.findall(QUOTED.sub("", text)))
        elif keyword == "RUN":
            secrets.update(_secret_ids(text))
    if any("$" in each for each in (*stages, *secrets)):
        return None
    return Declarations(tuple(stages), frozenset(arguments), frozenset(secrets))


def _secret_ids(run: str) -> Iterator[str]:
    """Yield the IDs of the secrets that a RUN instruction mounts."""
    for mount in MOUNT.findall(run):
        options = dict(each.strip("\"'").partition("=")[::2] for each in mount.split(","))
        if options.get("type") == "secret":
            targets = (options.get(key) for key in ("target", "dst", "destination"))
            path = next((each for each in targets if each), "")
            yield options.get("id") or PurePosixPath(path).name


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
