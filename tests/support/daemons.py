"""Services that speak the Docker Engine API, each on its own socket."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

START_TIMEOUT = 30
STOP_TIMEOUT = 15


@contextmanager
def dockerd() -> Iterator[Path]:
    """Run Debian's dockerd without a network, and return the path of its socket."""
    need("dockerd", "containerd", "runc")
    with _folder() as folder:
        path = folder / "docker.sock"
        config = folder / "daemon.json"
        config.write_text("{}")
        command: list[str | Path] = [
            *("dockerd", "--host", f"unix://{path}", "--storage-driver", "vfs"),
            *("--iptables=false", "--ip6tables=false", "--bridge=none"),
            *("--data-root", folder / "data", "--exec-root", folder / "exec"),
            *("--pidfile", folder / "docker.pid", "--config-file", config),
        ]
        with _service(command, path):
            yield path


@contextmanager
def podman() -> Iterator[Path]:
    """Run podman's service, and return the path of its socket."""
    with podman_command() as command, _folder() as folder:
        path = folder / "podman.sock"
        with _service([*command, "system", "service", "--time", "0", f"unix://{path}"], path):
            yield path


@contextmanager
def podman_command() -> Iterator[list[str]]:
    """Return the beginning of a podman command with its own storage."""
    need("podman")
    with _folder() as folder:
        yield [
            *("podman", "--root", f"{folder}/data", "--runroot", f"{folder}/run"),
            *("--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"),
        ]


def skopeo_copy(source: str, destination: str, *options: str) -> None:
    """Copy the image for amd64 from one place to another, on a machine of any architecture."""
    need("skopeo")
    skopeo = "skopeo", "--insecure-policy", "--override-arch", "amd64"
    run(*skopeo, "copy", "--quiet", *options, source, destination)


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"


def need(*commands: str) -> None:
    for command in commands:
        if shutil.which(command) is None:
            pytest.skip(f"no {command}: run scripts/test-tools")


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder whose path is short enough for a socket."""
    if os.geteuid() != 0:
        pytest.skip("the service needs root")
    with tempfile.TemporaryDirectory(prefix="fledge-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def _service(command: Sequence[str | Path], path: Path) -> Iterator[None]:
    log = path.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + START_TIMEOUT
        while not _answers(path):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"{command[0]} does not run here: {log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        client.settimeout(START_TIMEOUT)
        client.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
        return b" 200 " in client.recv(64)
