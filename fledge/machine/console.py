"""Runs QEMU, watches the console of its guest, and ends it."""

from __future__ import annotations

import os
import re
import selectors
import shutil
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from typing import IO

import msgspec

from fledge.host import programs
from fledge.host.signals import GuestInterrupt, uninterrupted
from fledge.machine.diagnosis import GAVE_UP, PANIC, SHUTDOWN

MAX_LINE = 4096
"""Bytes after which a line of the console is cut in two."""

LAST_LINES = 40
"""Lines of the console that are kept."""

PIECE = 1 << 16
INTERVAL = 0.2
"""Seconds between two looks at what else can end a guest."""

PAUSE = 5
"""Looks without output, which is a second, after which a line that is not complete counts: it may
be a prompt. A clock would count the time in which fledge itself is stopped."""

AFTER_DEATH = 10
"""Seconds in which a guest that died has ended: the command line says that it reboots in one."""

ESCAPE = b"\x01"
"""Ctrl-A, which begins a command on the keyboard, as in QEMU: Ctrl-A X ends the guest."""


class Ending(Enum):
    """How the run of a guest ended."""

    SEEN = "all that was expected was seen"
    ENDED = "the guest ended"
    DIED = "the guest died"
    TIMED_OUT = "the time was over"
    QUIT = "Ctrl-A X ended the guest"


_NEEDS_END = re.compile(
    r"(?:\\[^Z]|\[(?:\^|(?!\^))(?:\\.|[^\\])(?:\\.|[^]\\])*\]|[^$\\[])*(?:\$|\\Z)", re.DOTALL
)
"""Matches a regular expression with ``$`` or ``\\Z`` in it, outside escapes and sets."""


class Watch:
    """What is expected on a console, line by line, and its last lines."""

    def __init__(self, patterns: Sequence[re.Pattern[str]]) -> None:
        self.missing = list(patterns)
        """The patterns that no line has matched yet."""
        self.last_words: list[str] | None = None
        """The last lines up to the one in which the guest says that it dies. None: it says nothing
        like that. A program can write such a line too, so the guest has died only if it ends."""
        self.died_at: float | None = None
        """When it first said so, a time of `time.monotonic`."""
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._partial = b""

    def feed(self, data: bytes) -> None:
        """Look at the lines that are complete with more output."""
        *whole, self._partial = (self._partial + data).split(b"\n")
        while len(self._partial) > MAX_LINE:
            whole.append(self._partial[:MAX_LINE])
            self._partial = self._partial[MAX_LINE:]
        for line in whole:
            self._look(line)
            self._lines.append(_text(line))
            self._listen(self._lines[-1])

    def pause(self) -> None:
        """Look at the last line although it may go on, for what does not need its end."""
        text = _text(self._partial)
        self.missing = [
            each for each in self.missing if _NEEDS_END.match(each.pattern) or not each.search(text)
        ]

    def end(self) -> None:
        """Look at the last line, which does not go on."""
        self._look(self._partial)

    def tail(self) -> list[str]:
        """Return the last lines, also one that is not complete."""
        partial = [_text(self._partial)] if self._partial else []
        return [*self._lines, *partial]

    def _look(self, line: bytes) -> None:
        for start in range(0, len(line), MAX_LINE):
            text = _text(line[start : start + MAX_LINE])
            self.missing = [each for each in self.missing if not each.search(text)]

    def _listen(self, line: str) -> None:
        """Find out from a line whether the guest dies."""
        if PANIC.search(line) or GAVE_UP.search(line):
            self.last_words = list(self._lines)
            self.died_at = self.died_at or time.monotonic()
        elif SHUTDOWN.search(line) and self.last_words and PANIC.search(self.last_words[-1]):
            self.last_words = None  # a program had written that line: one that panics does not


def _text(line: bytes) -> str:
    return line[:MAX_LINE].decode(errors="replace").strip("\r\n")


_HELLO = b'{"execute": "qmp_capabilities"}'
_ANSWER = b'"return"'
"""What QEMU answers from its main loop, and so only if it holds all published ports."""

_NOT_FORWARDED = re.compile(r"host forwarding rule '[^']*:(\d+)-")


class Guest(msgspec.Struct):
    """A running guest."""

    process: subprocess.Popen[bytes]
    keyboard: IO[bytes]
    """Standard input of QEMU, which the guest reads from its console."""
    console: IO[bytes]
    """Standard output of QEMU, to which the guest writes on its console."""
    errors: IO[bytes]
    """The file that has the standard error of QEMU."""
    monitor: socket.socket
    """Where QEMU answers `_HELLO` once it has set up all devices (QEMU Machine Protocol)."""

    def wait(self) -> None:
        """Wait for QEMU. Raises `FledgeError` if it failed."""
        if status := self.process.wait():
            said = os.pread(self.errors.fileno(), PIECE, 0).decode(errors="replace").strip()
            advice = ""
            if port := _NOT_FORWARDED.search(said):
                advice = f"Port {port[1]} is in use, or not yours to use: publish another."
            raise programs.failed("QEMU", said or f"exit status {status}", advice)


@contextmanager
def running(command: Sequence[str], files: Sequence[int], path: str) -> Iterator[Guest]:
    """Run QEMU while the block runs; kill it at the end. ``files`` stay open for it.

    In a session of its own, so that Ctrl-C reaches only fledge, which ends it. If fledge itself is
    killed, QEMU is too, where setpriv(1) is installed. Raises `GuestInterrupt` for an interrupt.
    """
    if setpriv := shutil.which("setpriv", path=path):
        command = [setpriv, "--pdeathsig", "KILL", *command]
    variables = {"LC_ALL": "C", "PATH": path, "TMPDIR": tempfile.gettempdir()}
    process = None
    monitor, other = socket.socketpair()
    with monitor, other, tempfile.TemporaryFile() as errors:
        monitor.sendall(_HELLO)
        options = ["-chardev", f"socket,id=monitor,fd={other.fileno()}"]
        options += ["-mon", "chardev=monitor,mode=control"]
        try:
            with uninterrupted():
                process = subprocess.Popen(
                    [*command, *options],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    pass_fds=(*files, other.fileno()),
                    env=variables,
                    start_new_session=True,
                    bufsize=0,
                )
            other.close()  # so that the end of QEMU is the end of the connection
            if process.stdin and process.stdout:
                yield Guest(process, process.stdin, process.stdout, errors, monitor)
        except KeyboardInterrupt as interrupt:
            raise GuestInterrupt(*interrupt.args) from interrupt
        finally:
            if process:
                with process:  # closes the pipes, and waits
                    process.kill()  # nothing of a guest is to be kept


def attend(
    guest: Guest,
    watch: Watch,
    *,
    deadline: float | None,
    started: Callable[[], object],
    satisfied: Callable[[], bool],
    output: Callable[[bytes], None],
    keyboard: int | None,
) -> Ending:
    """Pass the console on until the guest ends, and return why it ended.

    ``deadline`` is a time of `time.monotonic`. ``started`` is called once QEMU has set up the
    guest: from then on, a published port leads to no other program. ``satisfied`` returns whether
    the guest has done what it is run for; it is asked often. ``keyboard`` is a descriptor to read
    keys from; None: there are no keys. Raises `FledgeError` if QEMU fails.
    """
    keys = None
    quiet = 0
    with selectors.DefaultSelector() as selector:
        selector.register(guest.console, selectors.EVENT_READ)
        selector.register(guest.monitor, selectors.EVENT_READ, _Monitor(guest.monitor, started))
        if keyboard is not None:
            keys = _Keys(guest.keyboard.fileno(), keyboard)
            selector.register(keyboard, selectors.EVENT_READ, keys)
        while True:
            ready = selector.select(INTERVAL)
            quiet = 0 if ready else quiet + 1
            for key, _ in ready:
                if key.data:
                    if not key.data.read():
                        selector.unregister(key.fileobj)
                elif data := os.read(key.fd, PIECE):
                    output(data)
                    watch.feed(data)
                else:
                    guest.wait()
                    watch.end()
                    return _last_ending(watch, satisfied())
            if keys and keys.quit:
                return Ending.QUIT
            if quiet >= PAUSE:
                watch.pause()
            now = time.monotonic()
            if watch.died_at and now < watch.died_at + AFTER_DEATH:
                continue  # the trace of a panic is no sign of life
            if satisfied():
                return Ending.SEEN
            if deadline is not None and now > deadline:
                return Ending.TIMED_OUT


def _last_ending(watch: Watch, satisfied: bool) -> Ending:
    """Return the ending of a guest that has ended by itself."""
    if watch.last_words:
        return Ending.DIED
    return Ending.SEEN if satisfied else Ending.ENDED


class _Monitor:
    """Waits until QEMU has set up the guest."""

    def __init__(self, connection: socket.socket, started: Callable[[], object]) -> None:
        self._connection = connection
        self._started = started
        self._said = b""

    def read(self) -> bool:
        """Read what QEMU says; return whether there is more to wait for."""
        try:
            said = self._connection.recv(PIECE)
        except ConnectionResetError:  # QEMU has ended, and has not read what was sent
            said = b""
        self._said += said
        if _ANSWER in self._said:
            self._started()
            return False
        return bool(said)


class _Keys:
    """Passes keys on to a guest, and finds the command to quit among them."""

    def __init__(self, descriptor: int, keyboard: int) -> None:
        self._descriptor = descriptor
        self._keyboard = keyboard
        self._escaped = False
        self.quit = False
        """Whether they said to quit."""
        os.set_blocking(descriptor, False)

    def read(self) -> bool:
        """Pass keys on; return whether there may be more."""
        keys = os.read(self._keyboard, PIECE)
        passed = bytearray()
        for number in keys:
            key = bytes([number])
            if self._escaped:
                self._escaped = False
                if key in b"xX":
                    self.quit = True
                    return False
                passed += key if key == ESCAPE else ESCAPE + key
            elif key == ESCAPE:
                self._escaped = True
            else:
                passed += key
        with suppress(BlockingIOError, BrokenPipeError):  # a guest that does not read, or has ended
            os.write(self._descriptor, passed)
        return bool(keys)
