"""What is looked for on the console of a guest, and which keys it gets."""

from __future__ import annotations

import os
import re
import sys
import time

import pytest

from fledge.errors import FledgeError
from fledge.machine import console
from fledge.machine.console import Ending, Watch, attend, running

PANIC = (
    b"[    3.912345] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\r\n"
)


def watch(*patterns: str) -> Watch:
    return Watch([re.compile(each) for each in patterns])


def test_lines_in_pieces() -> None:
    found = watch("^login: ", "ready$", "^never")
    for piece in (b"rea", b"d", b"y\r\nnot nev", b"er\nlogin", b": "):
        found.feed(piece)
    assert [each.pattern for each in found.missing] == ["^login: ", "^never"]
    found.pause()
    assert [each.pattern for each in found.missing] == ["^never"]
    assert found.tail() == ["ready", "not never", "login: "]


@pytest.mark.parametrize("pattern", ["ready$", r"ready\Z", "(?:up|ready$)", r"[$]|\$|ready$"])
def test_a_line_that_goes_on(pattern: str) -> None:
    found = watch(pattern, r"y|\\$|[$]")
    found.feed(b"server: ready")
    assert len(found.missing) == 2
    found.pause()
    assert len(found.missing) == 2
    found.feed(b" NOT, config is bad\n")
    assert [each.pattern for each in found.missing] == [pattern]
    found.feed(b"server: ready")
    found.end()
    assert found.missing == []


@pytest.mark.parametrize("pattern", [r"[$] ", r"\$ ", r"[]$] ", r"[^\]a] ", r"\[?\$ "])
def test_a_dollar_that_is_none_of_the_end(pattern: str) -> None:
    found = watch(pattern)
    found.feed(b"root$ ")
    found.pause()
    assert found.missing == []


@pytest.mark.slow
def test_a_flood_is_bounded() -> None:
    found = watch("end")
    for _ in range(100):
        found.feed(b"x" * 100_000)
    found.feed(b"end\n" + b"line\n" * 1000)
    assert found.missing == []
    assert len(found.tail()) == console.LAST_LINES
    assert max(map(len, found.tail())) <= console.MAX_LINE


def test_the_last_words_end_where_the_guest_died() -> None:
    found = watch("x")
    found.feed(b"cause\r\n" + PANIC + b"Call Trace:\r\n" * 100)
    assert found.last_words == ["cause", PANIC.decode().strip()]
    assert found.tail() == ["Call Trace:"] * console.LAST_LINES


SHUTDOWN = b"[    5.205361] reboot: Power down\r\n"


@pytest.mark.parametrize("written", [PANIC, b"Kernel panic - not syncing: said the log\n"])
def test_a_program_that_writes_what_the_kernel_would(written: bytes) -> None:
    assert guest(f"import os; os.write(1, {written + SHUTDOWN!r})") is Ending.ENDED
    all_seen = written + b"ready\r\n" + SHUTDOWN
    assert guest(f"import os; os.write(1, {all_seen!r})", "ready") is Ending.SEEN
    assert guest(f"import os; os.write(1, {SHUTDOWN + written!r})") is Ending.DIED


@pytest.mark.slow
def test_the_trace_of_a_panic_is_not_what_was_expected() -> None:
    script = f"import os, time; os.write(1, {PANIC!r}); time.sleep(1)"
    assert guest(script, "init") is Ending.DIED


def guest(script: str, *patterns: str, keys: bytes = b"", seconds: float = 60) -> Ending:
    """Attend to a program in place of QEMU. Without patterns nothing is expected."""
    found = watch(*patterns)
    keyboard, writing = os.pipe()
    os.write(writing, keys)
    os.close(writing)
    with running([sys.executable, "-c", script], [], os.defpath) as running_guest:
        return attend(
            running_guest,
            found,
            deadline=time.monotonic() + seconds,
            started=lambda: None,
            satisfied=lambda: bool(patterns) and not found.missing,
            output=lambda _: None,
            keyboard=keyboard,
        )


ECHO = "import os\nwhile True: os.write(1, b'<%s>\\n' % os.read(0, 100))"


@pytest.mark.parametrize(
    ("keys", "ending", "pattern"),
    [
        (b"ls\r", Ending.SEEN, "^<ls"),
        (b"a\x01\x01b", Ending.SEEN, "^<a\x01b>"),
        (b"a\x01b", Ending.SEEN, "^<a\x01b>"),
        (b"a\x01x", Ending.QUIT, "^never"),
        (b"\x01X", Ending.QUIT, "^never"),
    ],
)
def test_keys(keys: bytes, ending: Ending, pattern: str) -> None:
    assert guest(ECHO, pattern, keys=keys) is ending


@pytest.mark.slow
def test_a_prompt_and_a_pause() -> None:
    script = "import os, time; os.write(1, b'ready'); time.sleep(2); os.write(1, b' NOT\\n')"
    assert guest(script, "ready$") is Ending.ENDED
    assert guest(script, "ready") is Ending.SEEN
    assert guest("import os; os.write(1, b'login: '); os.read(0, 9)", "^login: ") is Ending.SEEN
    assert guest("import os; os.write(1, b'ready')", "ready$") is Ending.SEEN


@pytest.mark.slow
def test_endings() -> None:
    assert guest("print('done')") is Ending.ENDED
    assert guest("print('done')", "done") is Ending.SEEN
    assert guest(f"import os; os.write(1, {PANIC!r})") is Ending.DIED
    assert guest("import time; time.sleep(100)", seconds=0.1) is Ending.TIMED_OUT


@pytest.mark.slow
def test_a_guest_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "AFTER_DEATH", 0.1)
    script = f"import os, time; os.write(1, {PANIC + b'ready'!r}); time.sleep(100)"
    assert guest(script, "ready") is Ending.SEEN
    assert guest(script, "never", seconds=0.5) is Ending.TIMED_OUT


def test_an_emulator_that_fails() -> None:
    with pytest.raises(FledgeError, match="QEMU failed: no such machine"):
        guest("import sys; sys.exit('no such machine')")
