"""Finds and runs programs of the host, in a clean environment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from fledge.errors import FledgeError, HostError
from fledge.host.settings import Settings
from fledge.host.signals import uninterrupted

SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"
"""The folders of administrators' programs, which a plain user's PATH often lacks."""

PACKAGES = {
    "mkfs.ext4": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "mount": "mount",
    "umount": "mount",
    "losetup": "mount",
    "sync": "coreutils",
    "ssh": "openssh-client",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-system-aarch64": "qemu-system-arm",
    "busybox": "busybox-static",
    "buildctl": "buildkit",
    "docker": "docker.io",
    "podman": "podman",
    "buildah": "buildah",
}
"""The Debian package of every program that fledge runs."""

ANSWER_TIMEOUT = 20.0
"""Seconds to wait for the answer of a program, which may ask a daemon that hangs."""

GRACE_PERIOD = 10.0
"""Seconds that an interrupted program gets to clean up, before it is killed."""

POLL_INTERVAL = 0.05
"""Seconds between two looks whether an interrupted program has ended."""

MAX_LINE = 1 << 13
"""Maximum bytes of a line that a program prints."""

MAX_QUOTED = 1000
"""Maximum characters of a program's error output in a message."""


def find(program: str, settings: Settings) -> str:
    """Return the path of a program. Raises `HostError` that names the package to install."""
    path = shutil.which(program, path=search_path(settings))
    if path is None:
        package = PACKAGES[program]
        raise HostError(
            f"{program} is not installed",
            f"Install {package}: apt install {package}, or your distribution's package of it.",
        )
    return path


def run(
    program: str,
    *arguments: str,
    folder: int,
    settings: Settings,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a program in the open ``folder``, wait for it, and return its standard error.

    It is killed if the thread that calls this dies. The only variable it gets from the user's
    environment is PATH; ``environment`` adds others. Raises `HostError` if the program is not
    installed, `FledgeError` that quotes its standard error if it fails.
    """
    command = [*_dying_with_parent(settings), find(program, settings), *arguments]
    variables = {"LC_ALL": "C", "TZ": "UTC", "PATH": search_path(settings), **(environment or {})}
    # In a session of its own, so that Ctrl-C on the terminal reaches only fledge, which then
    # cleans up in order.
    done = subprocess.run(
        command,
        cwd=f"/proc/self/fd/{folder}",
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        check=False,
    )
    output = as_text(done.stderr).strip()
    if done.returncode != 0:
        raise failed(program, output or f"exit status {done.returncode}")
    return output


def ask(
    program: str, *arguments: str, settings: Settings, environment: Mapping[str, str]
) -> tuple[int, str]:
    """Run a program that answers a question, and return its exit status and all that it prints.

    One that takes longer than `ANSWER_TIMEOUT` is killed, and has the exit status -9. Raises
    `HostError` if it is not installed.
    """
    try:
        done = subprocess.run(
            [find(program, settings), *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            timeout=ANSWER_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL, f"no answer within {ANSWER_TIMEOUT:.0f} s"
    return done.returncode, as_text(done.stdout).strip()


def follow(
    program: str,
    *arguments: str,
    settings: Settings,
    environment: Mapping[str, str],
    show: Callable[[str], None],
) -> int:
    """Run a program that works for long, pass on each line that it prints, return its exit status.

    A line of more than `MAX_LINE` bytes is passed on in pieces. An interrupt, or any other
    exception, stops the program and its children as Ctrl-C does, and kills them after
    `GRACE_PERIOD`; the death of this thread stops the program as well. Raises `HostError` if it is
    not installed.
    """
    command = [*_dying_with_parent(settings, "INT"), find(program, settings), *arguments]
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout  # noqa: S101 -- it is a pipe
            for line in iter(partial(process.stdout.readline, MAX_LINE), b""):
                for part in as_text(line).rstrip().split("\r"):
                    show(part)
            return process.wait()
        except BaseException:
            with uninterrupted():
                _stop(process)
            raise


def as_text(output: bytes) -> str:
    """Decode what a program prints. Bytes that are not UTF-8 become escapes."""
    return output.decode("utf-8", "backslashreplace")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process group, whose leader may end before the others have cleaned up.

    Its descendants in other sessions, such as containers, are killed if it leaves them behind.
    """
    deadline = time.monotonic() + GRACE_PERIOD
    with ExitStack() as opened:
        descendants: dict[int, int] = {}
        with suppress(ProcessLookupError):  # no process of the group is left
            _hold_descendants(process.pid, descendants, opened)
            os.killpg(process.pid, signal.SIGINT)
            while time.monotonic() < deadline:
                process.poll()
                time.sleep(POLL_INTERVAL)
                _hold_descendants(process.pid, descendants, opened)
                os.killpg(process.pid, 0)
            os.killpg(process.pid, signal.SIGKILL)
        for descriptor in descendants.values():
            with suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)


def _hold_descendants(root: int, held: dict[int, int], opened: ExitStack) -> None:
    """Open the descendants of a process that are not ``held`` yet: descriptors by process ID."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            # The fourth field, behind the name in parentheses (proc(5)).
            parent = int(path.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = [root, *held]
    for process in found:
        for child in children.get(process, ()):
            if child not in held:
                with suppress(OSError):
                    held[child] = os.pidfd_open(child)
                    opened.callback(os.close, held[child])
                    found.append(child)


def failed(program: str, output: str, hint: str = "") -> FledgeError:
    """Return the error for a program that failed with this error output."""
    return FledgeError(f"{program} failed: {output[:MAX_QUOTED]}", hint)


def _dying_with_parent(settings: Settings, by: str = "KILL") -> list[str]:
    """Return the command that lets the program after it get a signal when this thread dies
    (prctl(2)).

    It is of util-linux, and empty where only another setpriv is installed: programs of a killed
    build then run to their end.
    """
    path = shutil.which("setpriv", path=search_path(settings))
    if path is None or Path(path).resolve().name != "setpriv":  # busybox's knows no such option
        return []
    return [path, "--pdeathsig", by, "--"]


def search_path(settings: Settings) -> str:
    """Return the folders that programs are searched in, as in ``PATH``."""
    return settings.program_folders + os.pathsep + SYSTEM_FOLDERS
