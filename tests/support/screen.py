"""A terminal for a program: what it wrote, and what a person sees of that."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from codecs import getincrementaldecoder
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TOKEN = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n])|(.)", re.DOTALL)
UNFINISHED = re.compile(r"\x1b(\[[?\d;]*)?\Z")

POLL_INTERVAL = 0.05
"""Seconds between two looks at a screen that does not change."""


@dataclass
class Screen:
    """What a terminal shows, of the control codes that fledge may use. Others are an error."""

    columns: int
    rows: list[list[str]] = field(default_factory=lambda: [[]])
    row: int = 0
    column: int = 0
    cursor_visible: bool = True

    def feed(self, text: str) -> None:
        for code in TOKEN.finditer(text):
            argument, letter, newline, character, unknown = code.groups()
            assert not unknown, f"{unknown!r} is no control code that fledge may use"
            if letter:
                self._control(argument, letter)
            elif newline == "\r":
                self.column = 0
            elif newline:
                self._down()
            else:
                self._put(character)

    def lines(self) -> list[str]:
        shown = ["".join(row).rstrip() for row in self.rows]
        while shown and not shown[-1]:
            shown.pop()
        return shown

    def _put(self, character: str) -> None:
        if self.column == self.columns:
            self._down()
            self.column = 0
        row = self.rows[self.row]
        row += " " * (self.column + 1 - len(row))
        row[self.column] = character
        self.column += 1

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append([])

    def _control(self, argument: str, letter: str) -> None:
        if letter == "A":
            self.row = max(0, self.row - int(argument or 1))
        elif (letter, argument) == ("K", "2"):
            self.rows[self.row] = []
        elif argument == "?25" and letter in "lh":
            self.cursor_visible = letter == "h"
        else:
            assert letter == "m", f"{argument}{letter} is no control code that fledge may use"


@dataclass(frozen=True)
class Shown:
    """How a program ended, and what was on its terminal: at every moment, and in the end."""

    code: int
    text: str
    moments: list[list[str]]
    cursor_visible: bool

    @property
    def lines(self) -> list[str]:
        return self.moments[-1]


def run(
    command: Sequence[str | Path],
    folder: Path,
    environment: dict[str, str] | None = None,
    *,
    columns: int = 100,
    encoding: str = "utf-8",
    interrupt: Callable[[list[str]], int | None] = lambda lines: None,
    answers: Sequence[str] = (),
) -> Shown:
    """Run a program on a terminal, standard output included.

    ``interrupt`` sees the screen from time to time, and may return a signal to send once. SIGINT
    is sent by pressing Ctrl-C, which the terminal shows as ``^C``. One of the ``answers`` is typed
    after each question, which ends with a colon and a space.
    """
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    variables = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        ["setsid", "--ctty", *command],
        cwd=folder,
        stdin=child,
        stdout=child,
        stderr=child,
        env={**variables, "TERM": "xterm-256color", **(environment or {})},
    )
    os.close(child)
    screen = Screen(columns)
    moments: list[list[str]] = [[]]
    text = ""
    rest = ""
    decoder = getincrementaldecoder(encoding)()
    sent = False
    left = list(answers)
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            number = None if sent else interrupt(moments[-1])
            if number:
                sent = True
                if number == signal.SIGINT:
                    os.write(parent, b"\x03")
                else:
                    process.send_signal(number)
            if not select.select([parent], [], [], POLL_INTERVAL)[0]:
                continue
            try:
                received = os.read(parent, 65536)
            except OSError:  # EIO: the program has ended
                break
            rest += decoder.decode(received)
            # A control code may be cut in two.
            end = unfinished.start() if (unfinished := UNFINISHED.search(rest)) else len(rest)
            piece, rest = rest[:end], rest[end:]
            text += piece
            if left and text.endswith(": "):
                os.write(parent, f"{left.pop(0)}\n".encode())
            screen.feed(piece)
            if screen.lines() != moments[-1]:
                moments.append(screen.lines())
        assert not rest
        return Shown(process.wait(10), text, moments, screen.cursor_visible)
    finally:
        process.kill()
        process.wait()
        os.close(parent)
