"""Machines with a network, a user, a home and a cache of their own, made of network namespaces."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.pythons import Nobody

SERVER = "10.213.0.1"
"""The address at which the machines reach this one."""


@dataclass(frozen=True)
class Machine:
    """A machine of one user."""

    home: Path
    python: Path
    namespace: str
    uid: int

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run fledge at home."""
        for path in (self.home, *self.home.rglob("*")):
            os.chown(path, self.uid, self.uid, follow_symlinks=False)
        environment = {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(self.home / "packages"),
            "FLEDGE_INSECURE_REGISTRIES": SERVER,
        }
        return subprocess.run(
            [
                *("ip", "netns", "exec", self.namespace),
                *("setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"),
                *(str(self.python), "-m", "fledge", *arguments),
            ],
            cwd=self.home,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )


@contextmanager
def machines(user: Nobody, count: int) -> Iterator[Sequence[Machine]]:
    """Make machines that reach this one at `SERVER`, with the Python and packages of a user."""
    if os.geteuid() != 0:
        pytest.skip("needs root for namespaces with a network")
    with ExitStack() as stack:
        _run("ip", "address", "replace", f"{SERVER}/32", "dev", "lo")
        stack.callback(_run, "ip", "address", "del", f"{SERVER}/32", "dev", "lo")
        yield [_machine(user, number, stack) for number in range(1, count + 1)]


def _machine(user: Nobody, number: int, stack: ExitStack) -> Machine:
    name = f"fledge-{os.getpid()}-{number}"
    here, there = f"10.213.{number}.1", f"10.213.{number}.2"
    outside, inside = f"fl{number}a{os.getpid()}"[:15], f"fl{number}b{os.getpid()}"[:15]
    _run("ip", "netns", "add", name)
    stack.callback(_run, "ip", "netns", "del", name)
    _run("ip", "link", "add", outside, "type", "veth", "peer", "name", inside, "netns", name)
    _run("ip", "address", "add", f"{here}/24", "dev", outside)
    _run("ip", "link", "set", outside, "up")
    for command in (
        ("address", "add", f"{there}/24", "dev", inside),
        ("link", "set", inside, "up"),
        ("link", "set", "lo", "up"),
        ("route", "add", "default", "via", here),
    ):
        _run("ip", "-n", name, *command)
    home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="machine-")))
    shutil.copytree(user.home / "packages", home / "packages")
    return Machine(home, user.python, name, 20000 + number)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
