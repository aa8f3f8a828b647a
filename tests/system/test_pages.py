"""Every console session in README.md and docs/ is run, and prints what the page shows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import guests, images, project, registry, releases, sessions, tars, vm
from tests.support.agents import AGENT
from tests.support.httpd import Server

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

REGISTRY = "registry.example.org"
"""The registry of the pages."""


class World:
    """Where the reader of a page is: a folder, an environment, and servers."""

    def __init__(self, folder: Path, environment: pytest.MonkeyPatch, stack: ExitStack) -> None:
        self.folder = folder
        self.environment = environment
        self.stack = stack
        self.replaced: dict[str, str] = {}
        """Texts of the page, and those that stand in for them."""

    def has_fixture(self, name: str) -> None:
        """Put the reader into a copy of a folder of ``fixtures/``."""
        shutil.copytree(ROOT / "fixtures", self.folder / "fixtures")
        self.folder = self.folder / "fixtures" / name
        if name == "image":
            subprocess.run([sys.executable, "make-layout", "layout"], cwd=self.folder, check=True)

    def has_registry(self) -> str:
        """Run a registry in place of `REGISTRY`. Returns its host."""
        host = self.stack.enter_context(registry.serve(self.folder / "storage", deletes=True))
        self.replaced[REGISTRY] = host
        return host

    def has_agent(self) -> None:
        """Run a server with a release of the agent, in place of GitHub."""
        server = self.stack.enter_context(Server())
        releases.publish(server, {"kestrel": AGENT}, tag="v0.6.5")
        self.environment.setenv("FLEDGE_GITHUB_API", server.url(""))

    def has_hub(self) -> None:
        """Run a registry in place of Docker Hub, with an ``nginx:alpine`` of busybox."""
        host = self.has_registry()
        serve = b"#!/bin/sh\nexec httpd -f -p 80 -h /usr/share/nginx/html\n"
        layer = tars.pack(
            tars.folder("bin"),
            tars.file("bin/busybox", guests.host_busybox(), mode=0o755),
            *(tars.symlink(f"bin/{name}", "busybox") for name in ("sh", "httpd")),
            *map(tars.folder, ("etc", "tmp", "usr", "usr/bin", "usr/sbin", "usr/share")),
            *map(tars.folder, ("usr/share/nginx", "usr/share/nginx/html", "usr/local")),
            tars.file("usr/sbin/nginx", serve, mode=0o755),
        )
        run = {"Entrypoint": ["nginx"], "ExposedPorts": {"80/tcp": {}}}
        registry.push(host, "library/nginx", images.image(layer, config=run), "alpine")
        self.environment.setenv("FLEDGE_REGISTRY_MIRRORS", f"docker.io={host}")
        self.environment.setenv("DOCKER_HOST", "unix:///nonexistent")

    def has_kernel(self) -> None:
        """Have a kernel in ``/boot``."""
        self.environment.setenv("FLEDGE_KERNEL", str(vm.kernel()))
        self.replaced["8080"] = str(guests.free_port())

    def has_default_busybox(self) -> None:
        """Have Debian's busybox in place of the default one."""
        binary = guests.host_busybox()
        url = project.write(self.folder, "busybox", binary).as_uri()
        line = 'strategy = "initramfs"\n'
        self.replaced[line] = line + project.source(url, binary)


def plain(world: World) -> None:
    """Nothing but the files that the page writes."""


def auditor(world: World) -> None:
    world.has_fixture("image")


def signer(world: World) -> None:
    world.has_fixture("image")
    build = ["fledge", "build", "-q", "--platform", "linux/amd64", "-o", "hello.img"]
    subprocess.run(build, cwd=world.folder, check=True)


def publisher(world: World) -> None:
    world.has_registry()
    signer(world)


def team(world: World) -> None:
    host = world.has_registry()
    world.environment.setenv("HOME", str(world.folder))
    world.environment.delenv("FLEDGE_CACHE_DIR")
    world.environment.delenv("XDG_CACHE_HOME", raising=False)
    world.has_fixture("image")
    page = (ROOT / "docs/guides/team.md").read_text()
    [table] = re.findall(r"```toml\n(\[cache\]\n.*?)```", page, re.DOTALL)
    config = world.folder / "fledge.toml"
    config.write_text(f"{config.read_text()}\n{table.replace(REGISTRY, host)}")
    (world.folder / "policy.toml").write_text('keys = ["ci.pub"]\n')
    subprocess.run(["fledge", "keygen", "-o", "ci"], cwd=world.folder, check=True)


def sealer(world: World) -> None:
    toml = project.make_rootfs(world.folder)
    tables = "read_only = true\n[verity]"
    toml.write_text(toml.read_text().replace("size_buffer_mb = 8", tables))


def many(world: World) -> None:
    project.make(world.folder / "plugins/cache", project.LOCAL_AGENT)
    project.make_rootfs(world.folder / "plugins/web")
    mapping = '\n[mappings]\n"schema.sql" = "/etc/schema.sql"\n'
    project.make(world.folder / "plugins/db", project.LOCAL_AGENT, mapping)


def newcomer(world: World) -> None:
    world.has_agent()
    world.has_hub()
    world.has_kernel()


def first_initramfs(world: World) -> None:
    world.has_kernel()
    world.has_default_busybox()


def has_built(world: World) -> None:
    world.has_fixture("hello")
    world.has_kernel()
    url, toml = project.write(world.folder, "busybox", guests.host_busybox()), "fledge.toml"
    table = project.source(url.as_uri(), guests.host_busybox())
    (world.folder / toml).write_text((world.folder / toml).read_text() + table)


def boots(world: World) -> None:
    """Have a disk, too."""
    has_built(world)
    image = world.folder.parent / "image"
    subprocess.run([sys.executable, "make-layout", "layout"], cwd=image, check=True)
    build = ["fledge", "build", "-q", "-c", str(image / "fledge.toml"), "-o", "cut.img"]
    subprocess.run(build, cwd=world.folder, check=True)


def kernel_user(world: World) -> None:
    toml = project.make_rootfs(world.folder, 'type = "xfs"')
    assert toml.exists()


def installer(world: World) -> None:
    world.has_agent()
    world.has_hub()
    page = (ROOT / "docs/guides/volant.md").read_text()
    [table] = re.findall(r"```toml\n(\[manifest\]\n.*?)```", page, re.DOTALL)
    source = 'version = "1"\nstrategy = "oci_rootfs"\n[source]\nimage = "nginx:alpine"\n'
    (world.folder / "fledge.toml").write_text(source + table)


SETUPS: dict[str, tuple[Callable[[World], None], pytest.MarkDecorator]] = {
    "README.md": (newcomer, pytest.mark.real),
    "docs/init.md": (newcomer, pytest.mark.real),
    "docs/guides/audit.md": (auditor, pytest.mark.slow),
    "docs/guides/config.md": (plain, pytest.mark.slow),
    "docs/guides/boot.md": (boots, pytest.mark.real),
    "docs/guides/kernels.md": (kernel_user, pytest.mark.slow),
    "docs/guides/many.md": (many, pytest.mark.slow),
    "docs/guides/seal.md": (sealer, pytest.mark.slow),
    "docs/guides/ship.md": (publisher, pytest.mark.real),
    "docs/guides/sign.md": (signer, pytest.mark.slow),
    "docs/guides/team.md": (team, pytest.mark.real),
    "docs/guides/vmms.md": (has_built, pytest.mark.real),
    "docs/guides/volant.md": (installer, pytest.mark.real),
    "docs/tutorials/image.md": (newcomer, pytest.mark.real),
    "docs/tutorials/initramfs.md": (first_initramfs, pytest.mark.real),
}
"""How to prepare for the session of each page."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=mark) for name, (_, mark) in SETUPS.items()]
)
def test_a_session_prints_what_is_shown(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("FLEDGE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONUTF8", "1")
    with ExitStack() as stack:
        folder = tmp_path / "reader"
        folder.mkdir()
        world = World(folder, monkeypatch, stack)
        prepare, _ = SETUPS[name]
        prepare(world)
        sessions.run(ROOT / name, world.folder, world.replaced)


def test_no_session_is_left_out() -> None:
    shown = {page.relative_to(ROOT).as_posix() for page in PAGES if _has_session(page)}
    assert shown == set(SETUPS)


def _has_session(page: Path) -> bool:
    has = any(isinstance(step, sessions.Command) for step in sessions.read(page))
    # One that is indented, as in a list, would not be found.
    assert has == ("```console" in page.read_text()), page
    return has
