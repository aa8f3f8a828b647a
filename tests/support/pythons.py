"""Pythons of this machine with fledge installed, and a user without privileges."""

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_CHECKOUT = Path(__file__).parents[2]
_VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
_NOBODY = 65534

# Prints the interpreter behind a shim or a venv's python.
_WHO = "import sys; print(sys.implementation.name, '%d.%d' % sys.version_info[:2]); "
_WHO += "print(sys._base_executable)"


@functools.cache
def pythons() -> Mapping[str, Path]:
    """Return a CPython for every supported version ("3.12") that this machine has."""
    # Debian's own come first, because every user may run them.
    candidates = ["/usr/bin/python3", sys.executable]
    candidates += [f"python{version}" for version in _VERSIONS]
    candidates += sorted(map(str, Path.home().glob(".pyenv/versions/*/bin/python")))
    found: dict[str, Path] = {}
    for candidate in candidates:
        try:
            answer = subprocess.run(
                [candidate, "-I", "-c", _WHO], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            continue  # missing, or a shim of a missing version
        name, executable = answer.stdout.splitlines()
        implementation, version = name.split()
        if implementation == "cpython" and version in _VERSIONS:
            found.setdefault(version, Path(executable))
    return dict(sorted(found.items()))


@functools.cache
def venv_with_fledge(python: Path) -> Path:
    """Return the python of a venv which has this checkout's fledge and what it depends on."""
    version = subprocess.check_output([python, "-VV"])
    # Include the path: a copy of the checkout must not run the sources of the original.
    key = hashlib.sha256(b"\0".join([bytes(python), version, bytes(_CHECKOUT)]))
    key.update((_CHECKOUT / "pyproject.toml").read_bytes())
    venv = _CHECKOUT / ".cache" / "venvs" / key.hexdigest()[:16]
    venv_python = venv / "bin" / "python"
    finished = venv / "finished"
    venv.parent.mkdir(parents=True, exist_ok=True)
    with venv.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests that run side by side share it
        if not finished.exists():
            if subprocess.run([python, "-c", "import ensurepip"], check=False).returncode != 0:
                pytest.skip(f"{python} cannot make a venv: run scripts/test-tools")
            subprocess.run([python, "-m", "venv", "--clear", venv], check=True)
            pip = [str(venv_python), "-I", "-m", "pip", "--disable-pip-version-check"]
            subprocess.run([*pip, "install", "--quiet", "--editable", str(_CHECKOUT)], check=True)
            finished.touch()
    return venv_python


@dataclass(frozen=True)
class Nobody:
    """A user without rights: nobody for root, and for anyone else themselves.

    A test puts files into `home` as it likes; from the next run on they belong to the user.
    """

    home: Path
    python: Path

    def run(self, command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
        """Run a command at home. Its `python` finds fledge there, not in the checkout."""
        if os.geteuid() == 0:
            for path in (self.home, *self.home.rglob("*")):
                os.chown(path, _NOBODY, _NOBODY, follow_symlinks=False)
        environment = {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(self.home / "packages"),
        }
        return _run_without_rights(command, cwd=self.home, env=environment)


@contextmanager
def nobody() -> Iterator[Nobody]:
    """Make a user without privileges, who cannot read the checkout or root's Pythons."""
    python = next((python for python in pythons().values() if _runs_without_rights(python)), None)
    if python is None:
        pytest.skip("no Python that nobody can run: run scripts/test-tools")
    [packages] = venv_with_fledge(python).parents[1].glob("lib/python*/site-packages")
    with tempfile.TemporaryDirectory(prefix="nobody-") as home:
        shutil.copytree(packages, Path(home, "packages"))
        shutil.copytree(_CHECKOUT / "fledge", Path(home, "packages", "fledge"))
        yield Nobody(Path(home), python)


def _runs_without_rights(python: Path) -> bool:
    try:
        return _run_without_rights([python, "-c", ""], cwd=Path("/"), env={}).returncode == 0
    except PermissionError:
        return False


def _run_without_rights(
    command: Sequence[str | Path], cwd: Path, env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    root = os.geteuid() == 0
    return subprocess.run(
        command,
        cwd=cwd,
        env=env,
        user=_NOBODY if root else None,
        group=_NOBODY if root else None,
        extra_groups=() if root else None,
        capture_output=True,
        text=True,
        check=False,
    )
