"""The console sessions of README.md and of the pages in docs/, and how to run them.

A page shows a session in blocks of the language ``console``: a command after ``$``, its further
lines after ``>``, and what it prints. A block with a ``title`` is a file that the reader writes at
this point. What a command prints is exact, but

- ``…`` stands for any text within a line, and a line of only ``…`` or ``...`` for any lines;
- a session shows either everything that a command prints, or leaves out the steps and notes on
  standard error. A step that begins is not shown: on a terminal, its end replaces it.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

FAILS = ("error:", "different:", "differs\n", "damaged:", "does not boot")
"""A command that prints one of these may have another exit code than 0."""

BEGUN = re.compile(r"^  … .*\n", re.MULTILINE)
"""The line of a step that begins."""


class Written(NamedTuple):
    """A file that the reader writes."""

    name: str
    text: str


class Command(NamedTuple):
    """A command, and what the page says that it prints."""

    command: str
    expected: str


def read(page: Path) -> Iterator[Written | Command]:
    """Yield what the reader of a page does, in order."""
    blocks = re.finditer(r"^```(\w+)(.*)\n((?:.*\n)*?)```$", page.read_text(), re.MULTILINE)
    for language, attributes, text in (block.groups() for block in blocks):
        if title := re.search('title="(.*?)"', attributes):
            yield Written(title[1], text)
        elif language == "console":
            joined = text.replace("\\\n> ", "")
            for shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", joined, re.MULTILINE):
                yield Command(*shown)


def run(page: Path, folder: Path, replaced: Mapping[str, str]) -> None:
    """Do in ``folder`` what a page says, after replacing texts of the page."""
    for step in read(page):
        name, text = (_replace(part, replaced) for part in step)
        if isinstance(step, Written):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        else:
            folder = _run(name, text, folder)


def _replace(text: str, replaced: Mapping[str, str]) -> str:
    for shown, actual in replaced.items():
        text = text.replace(shown, actual)
    return text


def _run(command: str, expected: str, folder: Path) -> Path:
    """Run a command, and compare what it prints. Returns the folder that it leaves the shell in."""
    shell = ["sh", "-c", f'{command}\nstatus=$?; printf "\\n%s" "$PWD"; exit $status']
    done = subprocess.run(shell, cwd=folder, capture_output=True, text=True, check=False)
    printed, _, left_in = BEGUN.sub("", done.stdout).rpartition("\n")
    steps, error, explained = BEGUN.sub("", done.stderr).partition("error: ")
    brief = printed + error + explained
    pattern = "".join(map(_line_pattern, expected.splitlines()))
    shown = any(re.fullmatch(pattern, output) for output in (brief, steps + brief))
    assert shown, f"{command}:\n{steps}{brief}"
    assert done.returncode == 0 or any(word in brief for word in FAILS), f"{command}:\n{done}"
    return Path(left_in)


def _line_pattern(line: str) -> str:
    if line.strip() in ("…", "..."):
        return r"(?:.*\n)*"
    return re.escape(line).replace("…", ".*") + r"\n"
