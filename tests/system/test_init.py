"""What fledge init writes is built, verified by its recipe for CI, and booted."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fledge.operations.boot import Machine
from tests.support import builders, images, project, registry, tars, vm
from tests.support.agents import AGENT
from tests.support.guests import host_busybox, run
from tests.support.httpd import Server
from tests.support.project import Fledge
from tests.support.releases import publish

pytestmark = pytest.mark.real

SERVE = b"#!/bin/sh\necho hello > /tmp/index.html\nexec /bin/busybox httpd -f -p %d -h /tmp\n"
"""A program that busybox runs."""

MOUNT_POINTS = ("dev", "proc", "run", "sys", "tmp")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def run_recipe(commands: list[str], folder: Path) -> str:
    """Run the commands of a recipe but the installation, as a CI service does. Returns output."""
    wanted = [each for each in commands if not each.startswith(("pip ", "apt-get "))]
    assert len(wanted) < len(commands)
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", "\n".join(wanted)],
        cwd=folder,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def steps(recipe: Path) -> list[str]:
    found: dict[str, Any] = yaml.safe_load(recipe.read_text())
    if recipe.suffix == ".yml" and recipe.parent.name == "workflows":
        job = found["jobs"]["plugin"]
        return [step["run"] for step in job["steps"] if "run" in step]
    script: list[str] = found["plugin"]["script"]
    return script


def test_an_image_by_a_recipe_to_a_booted_plugin(
    fledge: Fledge, github: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = vm.kernel().name.rpartition("-")[2]
    publish(github, {"kestrel": AGENT, f"kestrel-linux-{architecture}": AGENT})
    layer = tars.pack(
        *map(tars.folder, MOUNT_POINTS),
        tars.file("bin/busybox", host_busybox(), mode=0o755),
        tars.symlink("bin/sh", "busybox"),
        tars.file("usr/sbin/nginx", SERVE % 80, mode=0o755),
    )
    run_by = {"Entrypoint": ["/usr/sbin/nginx"], "ExposedPorts": {"80/tcp": {}}}
    nginx = images.image(layer, config=run_by, architecture=architecture)
    with registry.serve(tmp_path / "storage") as host:
        registry.push(host, "library/nginx", nginx, "latest")
        monkeypatch.setenv("FLEDGE_REGISTRY_MIRRORS", f"docker.io={host}")
        assert fledge("init", "nginx", "--ci", "github").code == 0
        assert fledge("lock").code == 0
        recipe = tmp_path / ".github/workflows/fledge.yml"
        assert "equal: nginx.img" in run_recipe(steps(recipe), tmp_path)
    manifest = json.loads((tmp_path / "nginx.img.manifest.json").read_text())
    assert (manifest["name"], manifest["version"]) == ("nginx", "0.1.0")
    assert manifest["workload"]["base_url"] == "http://127.0.0.1:80"
    port = free_port()
    console = run(
        tmp_path / "nginx.img",
        machine=Machine(kernel=vm.kernel(), publish=[f"{port}:80"]),
        expect=["workload answers"],
        probe=f"http://127.0.0.1:{port}/",
    )
    assert "agent: starts /usr/sbin/nginx" in console


def test_a_script_to_a_booted_plugin(fledge: Fledge, github: Server, tmp_path: Path) -> None:
    architecture = vm.kernel().name.rpartition("-")[2]
    publish(github, {"kestrel": AGENT, f"kestrel-linux-{architecture}": AGENT})
    project.write(tmp_path, "serve", SERVE % 8080)
    assert fledge("init", "./serve").code == 0
    binary = host_busybox()
    url = project.write(tmp_path, "busybox", binary).as_uri()
    toml = tmp_path / "fledge.toml"
    toml.write_text(toml.read_text() + project.source(url, binary))  # busybox.net is far away
    assert fledge("check").code == 0
    assert fledge("build").out == "plugin.cpio.gz\n"
    console = run(tmp_path / "plugin.cpio.gz", expect=["workload answers at http://127.0.0.1:8080"])
    assert "agent: starts /usr/bin/serve" in console


def test_a_dockerfile_by_a_recipe(
    fledge: Fledge, github: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = vm.kernel().name.rpartition("-")[2]
    publish(github, {"kestrel": AGENT, f"kestrel-linux-{architecture}": AGENT})
    project.write(tmp_path, "web/busybox", host_busybox(), executable=True)
    text = b'FROM scratch\nCOPY busybox /bin/busybox\nCMD ["/bin/busybox", "httpd", "-f"]\n'
    project.write(tmp_path, "web/Dockerfile", text)
    (tmp_path / ".git").mkdir()
    with builders.environment("buildah") as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert fledge("init", "web", "--ci", "gitlab").code == 0
        assert fledge("check", "web").code == 0
        out = run_recipe(steps(tmp_path / ".gitlab-ci.yml"), tmp_path)
    assert "equal: web.img" in out
    assert (tmp_path / "web/web.img").stat().st_size > 0


def test_programs_of_a_compiler(fledge: Fledge, tmp_path: Path) -> None:
    """A C program, with and without libraries."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc: run scripts/test-tools")
    project.write(tmp_path, "main.c", b"int main(void) { return 0; }\n")
    subprocess.run(["gcc", "-o", tmp_path / "dynamic", tmp_path / "main.c"], check=True)
    refused = fledge("init", "./dynamic")
    assert refused.code == 2
    is_native = vm.kernel().name.endswith("amd64")
    assert ("and libc.so.6, and an initramfs has no libraries" in refused.err) == is_native
    (tmp_path / "bin").mkdir()
    static = tmp_path / "bin/static"
    subprocess.run(["gcc", "-static", "-o", static, tmp_path / "main.c"], check=True)
    made = fledge("init")  # the dynamic one is no candidate
    assert ("bin/static, a static program" in made.err) == is_native
