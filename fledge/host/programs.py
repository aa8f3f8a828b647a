"""Finds and runs programs of the host, in a clean environment."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from fledge.errors import FledgeError, HostError
from fledge.host.settings import Settings

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
}
"""The Debian package of every program that fledge runs."""

MAX_QUOTED = 1000
"""Maximum characters of a program's error output in a message."""


def find(program: str, settings: Settings) -> str:
    """Return the path of a program. Raises `HostError` that names the package to install."""
    path = shutil.which(program, path=_search_path(settings))
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
    variables = {"LC_ALL": "C", "TZ": "UTC", "PATH": _search_path(settings), **(environment or {})}
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
    output = done.stderr.decode("utf-8", "backslashreplace").strip()
    if done.returncode != 0:
        raise failed(program, output or f"exit status {done.returncode}")
    return output


def failed(program: str, output: str, hint: str = "") -> FledgeError:
    """Return the error for a program that failed with this error output."""
    return FledgeError(f"{program} failed: {output[:MAX_QUOTED]}", hint)


def _dying_with_parent(settings: Settings) -> list[str]:
    """Return the command that lets the program after it die with this thread (prctl(2)).

    It is of util-linux, and empty where only another setpriv is installed: programs of a killed
    build then run to their end.
    """
    path = shutil.which("setpriv", path=_search_path(settings))
    if path is None or Path(path).resolve().name != "setpriv":  # busybox's knows no such option
        return []
    return [path, "--pdeathsig", "KILL", "--"]


def _search_path(settings: Settings) -> str:
    return settings.program_folders + os.pathsep + SYSTEM_FOLDERS
