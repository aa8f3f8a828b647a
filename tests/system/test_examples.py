"""The examples: each is valid, and does what its README.md shows, on real kernels where it boots.

`tests.support.stand_ins` says what plays the images that they name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import tomli

import fledge as library
from fledge.tree import File
from fledge.tree.content import read_content
from tests.support import builders, daemons, project, registry, stand_ins, vm
from tests.support.agents import AGENT
from tests.support.guests import host_busybox
from tests.support.httpd import Server
from tests.support.releases import publish

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
CONFIGS = sorted(EXAMPLES.rglob("fledge.toml"))
NAMES = sorted(each.name for each in EXAMPLES.iterdir() if each.is_dir())


# Without tools


@pytest.mark.parametrize("config", CONFIGS, ids=lambda each: str(each.relative_to(EXAMPLES)))
def test_the_schema_accepts_each_config(config: Path) -> None:
    schema = json.loads((ROOT / "fledge.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(tomli.loads(config.read_text()))
    line = config.read_text().partition("\n")[0]
    named = config.parent / line.removeprefix("#:schema ")
    assert named.resolve() == ROOT / "fledge.schema.json"


def test_the_index_lists_all_examples() -> None:
    listed = re.findall(r"\]\(\.\./examples/([^/)]+)\)", (ROOT / "docs/examples.md").read_text())
    assert sorted(listed) == NAMES
    assert len(NAMES) >= 10


@pytest.mark.parametrize("name", NAMES)
def test_a_readme_is_one_screen(name: str) -> None:
    lines = (EXAMPLES / name / "README.md").read_text().splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 100


# With what they name


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What plays the registries and GitHub: the variables that lead there, and a cache."""
    folder = tmp_path_factory.mktemp("hub")
    agent = {"kestrel": AGENT, "kestrel-arm64": AGENT}
    with registry.serve(folder / "storage") as host, Server() as github:
        stand_ins.fill(host)
        publish(github, agent, tag="v0.6.6")
        conf = "".join(
            f'[[registry]]\nprefix = "{name}"\nlocation = "{host}"\ninsecure = true\n'
            for name in stand_ins.MIRRORED
        )
        yield {
            "FLEDGE_REGISTRY_MIRRORS": ",".join(f"{each}={host}" for each in stand_ins.MIRRORED),
            "FLEDGE_GITHUB_API": github.url(""),
            "FLEDGE_CACHE_DIR": str(folder / "cache"),
            "FLEDGE_KERNEL": str(vm.kernel()),
            "CONTAINERS_REGISTRIES_CONF": str(
                project.write(folder, "registries.conf", conf.encode())
            ),
            "GOCACHE": str(ROOT / ".cache" / "go-build"),
            "PYTHONUTF8": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }


UNREACHABLE = {
    "FLEDGE_REGISTRY_MIRRORS": "docker.io=127.0.0.1:1",
    "FLEDGE_GITHUB_API": "http://127.0.0.1:1",
}


COMPILERS = {"static-rust": ("rustc", "gcc"), "distroless": ("go",)}


@pytest.fixture
def example(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    hub: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A copy of an example, with this machine's busybox in place of a download."""
    for name, value in hub.items():
        monkeypatch.setenv(name, value)
    daemons.need(*COMPILERS.get(request.param, ()))
    folder = Path(shutil.copytree(EXAMPLES / request.param, tmp_path / request.param))
    config = folder / "fledge.toml"
    text = config.read_text() if config.exists() else ""
    if 'strategy = "initramfs"' in text:
        binary = host_busybox()
        table = project.source(project.write(tmp_path, "busybox", binary).as_uri(), binary)
        extended = text.replace("[source]\n", table)
        config.write_text(extended if extended != text else text + table)
    return folder


def session(folder: Path) -> list[tuple[str, str]]:
    """The commands that a README.md shows, each with what it prints."""
    text = (folder / "README.md").read_text()
    shown = "".join(re.findall(r"```console\n(.*?)```", text, re.DOTALL)).replace("\\\n> ", "")
    return re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", shown, re.MULTILINE)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def line_pattern(shown: str) -> str:
    """A pattern for a line that is shown: … is any text, and alone any lines."""
    return r"(?:.*\n)*" if shown == "…" else re.escape(shown).replace("…", ".*") + r"\n"


def show(folder: Path) -> None:
    """Run the commands of a README.md in one shell, each of which must print what is shown."""
    commands = session(folder)
    assert commands
    port = free_port()
    script = ["set -e"]
    for number, (command, _) in enumerate(commands):
        if "--offline" in command:
            script += [f"export {name}={value}" for name, value in UNREACHABLE.items()]
        own = re.sub(r"--publish \d+:", f"--publish {port}:", command)
        own = own.replace("127.0.0.1:8080/", f"127.0.0.1:{port}/")
        script.append(f"exec >out.{number}\n{own}")
    shell = ["bash", "-c", "\n".join(script)]
    done = subprocess.run(shell, cwd=folder, stderr=subprocess.PIPE, text=True, check=False)
    for number, (command, expected) in enumerate(commands):
        output = folder / f"out.{number}"
        said = output.read_text().replace("\r\n", "\n") if output.exists() else ""
        pattern = "".join(map(line_pattern, expected.splitlines()))
        assert re.fullmatch(pattern, said), f"{command}:\n{said}{done.stderr}"
    assert done.returncode == 0, done.stderr


def of(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("example", names, indirect=True)


def contents(artifact: Path) -> dict[str, bytes]:
    """Return the regular files of an artifact."""
    with library.open_artifact(artifact) as opened:
        return {
            path.decode().lstrip("/"): b"".join(read_content(node.content))
            for path, node in opened.tree.walk()
            if isinstance(node, File)
        }


@pytest.mark.real
@of("static-rust", "python-app", "nginx", "node", "custom-init")
def test_it_boots_and_answers(example: Path) -> None:
    show(example)


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """podman or buildah, with storage of its own."""
    with builders.environment("buildah") as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield


@pytest.mark.real
@pytest.mark.usefixtures("builder")
@of("alpine-openrc")
def test_services_start(example: Path) -> None:
    show(example)


@pytest.mark.real
@pytest.mark.usefixtures("builder")
@of("dockerfile")
def test_a_builder_builds_it(example: Path) -> None:
    show(example)
    workload = json.loads((example / "report.img.manifest.json").read_text())["workload"]
    assert workload["entrypoint"] == ["/usr/bin/python3", "/srv/report.pyc"]
    assert workload["base_url"] == "http://127.0.0.1:8000"


@pytest.mark.real
@of("distroless")
def test_nothing_but_the_program(example: Path) -> None:
    show(example)
    files = contents(example / "server.img")
    assert files["usr/bin/server"] == (example / "server").read_bytes()
    assert "bin/sh" not in files
    own = {"bin/kestrel", "etc/fsify-entrypoint", "usr/bin/server"}
    assert own < set(files)
    assert all(each.startswith(("etc/", "usr/share/")) for each in set(files) - own)


@pytest.mark.real
@of("platforms")
def test_an_artifact_for_each_platform(example: Path) -> None:
    show(example)
    for name, machine in {"amd64": 62, "arm64": 183}.items():
        files = contents(example / f"alpine-{name}.img")
        [program] = {files[each] for each in ("bin/busybox", "usr/bin/busybox") if each in files}
        assert program[18] == machine
        assert files["srv/index.html"] == (example / "site/index.html").read_bytes()


@pytest.mark.real
@of("offline")
def test_the_lock_is_enough(example: Path) -> None:
    show(example)
    assert contents(example / "hello.img")["etc/motd"] == (example / "motd").read_bytes()


@pytest.mark.real
@of("sealed")
def test_a_sealed_disk_boots_until_it_is_damaged(example: Path) -> None:
    show(example)


@pytest.mark.real
@of("many-plugins")
def test_only_what_changed_is_built(example: Path) -> None:
    show(example)
    plugins = example / "plugins"
    web, edge = contents(plugins / "web/nginx.img"), contents(plugins / "edge/nginx.erofs")
    shared = (example / "shared/motd").read_bytes()
    assert web["etc/motd"] == edge["etc/motd"] == shared
    assert web["usr/share/nginx/html/index.html"] == b"<h1>changed</h1>\n"


@pytest.mark.real
@of("postgres")
def test_a_database_accepts_connections(example: Path) -> None:
    [(build, _), (boot, console)] = session(example)
    subprocess.run(["bash", "-c", build], cwd=example, check=True)
    port = str(free_port())
    command = boot.replace("5432:", f"{port}:")
    ready = line_pattern(console.splitlines()[1])
    with subprocess.Popen(
        ["bash", "-c", f"exec {command}"], cwd=example, stdout=subprocess.PIPE, text=True
    ) as guest:
        try:
            assert guest.stdout
            said = ""
            for line in guest.stdout:
                said += line
                if re.fullmatch(ready, line):
                    break
            else:
                pytest.fail(said)
            assert query(port, "SELECT text FROM notes") == "made at the first start\n"
        finally:
            guest.terminate()


def query(port: str, statement: str) -> str:
    """Ask the database app in a guest."""
    psql = stand_ins.program("usr/lib/postgresql/15/bin/psql")
    server = ("-h", "127.0.0.1", "-p", port, "-U", "postgres", "-At")
    done = subprocess.run(
        [*psql, *server, "-c", statement, "app"],
        env={"PGPASSWORD": "change-me"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
