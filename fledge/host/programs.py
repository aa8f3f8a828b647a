"""Programs of the host: found, run with a clean environment, and quoted when they fail."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from fledge.errors import FledgeError, HostError

SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where administrators' tools are, which a plain user's PATH often leaves out."""

PACKAGES = {
    "mkfs.ext4": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "mount": "mount",
    "umount": "mount",
    "losetup": "mount",
    "sync": "coreutils",
}
"""The Debian package of every tool that fledge runs."""

MAX_QUOTED = 1000
"""Characters of a tool's own words that a message repeats."""


def find(tool: str) -> str:
    """Where a tool is. Raises `HostError` with the package to install."""
    path = shutil.which(tool, path=_search_path())
    if path is None:
        package = PACKAGES[tool]
        raise HostError(
            f"{tool} is not installed",
            f"Install {package}: apt install {package}, or your distribution's package of it.",
        )
    return path


def run(
    tool: str,
    *arguments: str,
    folder: Path | str,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a tool in ``folder`` to its end and return what it wrote to standard error.

    Raises `HostError` if it is missing, `FledgeError` with its own words if it fails.
    """
    command = [find(tool), *arguments]
    variables = {"LC_ALL": "C", "TZ": "UTC", "PATH": _search_path(), **(environment or {})}
    # A session of its own: Ctrl-C on the terminal is for fledge to handle, in its order.
    done = subprocess.run(
        command,
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        check=False,
    )
    said = done.stderr.decode("utf-8", "backslashreplace").strip()
    if done.returncode != 0:
        raise failed(tool, said or f"exit status {done.returncode}")
    return said


def failed(tool: str, said: str) -> FledgeError:
    """The error of a tool that failed with these words."""
    return FledgeError(f"{tool} failed: {said[:MAX_QUOTED]}")


def _search_path() -> str:
    return os.environ.get("PATH", os.defpath) + os.pathsep + SYSTEM_FOLDERS
