"""What `fledge check` finds in local files: the same as a build, without a network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

import fledge as library
from fledge.errors import ConfigError, CorruptError, FledgeError
from fledge.session import Session
from fledge.sources.busybox import Busybox
from fledge.sources.kinds import SOURCES
from tests.support import greeting, images, project
from tests.support.project import Fledge
from tests.support.releases import KESTREL_ARM64
from tests.support.tars import file, hard_link, pack

AMD64 = "linux/amd64"
Change = Callable[[Path], object]


def damage(name: str) -> Change:
    """Change the last byte of the largest file that the pattern names."""

    def change(folder: Path) -> None:
        path = max(folder.glob(name), key=lambda path: path.stat().st_size)
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    return change


def replace(name: str, data: bytes) -> Change:
    return lambda folder: project.write(folder, name, data, executable=True)


def edit(old: str, new: str) -> Change:
    def change(folder: Path) -> None:
        toml = folder / "fledge.toml"
        assert old in toml.read_text()
        toml.write_text(toml.read_text().replace(old, new))

    return change


def own_init(folder: Path) -> Path:
    files = {**project.FILES, "my-init": b"#!/bin/sh\n"}
    return project.make(folder, '[init]\npath = "my-init"\n', project.MAPPINGS, files=files)


def evil(folder: Path) -> None:
    images.write_layout(folder / "layout", images.image(pack(hard_link("a", "gone"))), "hello")


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (project.make_rootfs, damage("layout/blobs/sha256/*"), "wrong digest|another digest|has"),
        (project.make_rootfs, evil, "layer 1 of 1"),
        (project.make_rootfs, edit("oci:layout:hello", "oci:layout:nope"), "has no image 'nope'"),
        (project.make_rootfs, edit("oci:layout:hello", "oci:gone"), "gone could not be read"),
        (project.make_rootfs, edit("oci:layout", "docker-archive:kestrel"), "docker-archive:"),
        (project.make_rootfs, replace("kestrel", b"port: 80\n"), "is not a program"),
        (project.make_rootfs, replace("kestrel", KESTREL_ARM64), "is for arm64, not for amd64"),
        (
            project.make_rootfs,
            edit('path = "kestrel"', f'path = "kestrel"\nchecksum = "{"0" * 64}"'),
            r"in \[agent\] checksum",
        ),
        (
            project.make_rootfs,
            edit('"/etc/webserver/config.yaml"', '"/usr/bin/hello/x"'),
            "cannot be mapped to /usr/bin/hello/x",
        ),
        (project.make, damage("busybox"), "has sha256"),
        (own_init, replace("my-init", b"port: 80\n"), "/init is neither an ELF program nor"),
        (own_init, replace("my-init", KESTREL_ARM64), "/init is for arm64, not for amd64"),
        (project.make, lambda folder: (folder / "busybox").unlink(), "busybox cannot be read"),
        (project.make, replace("kestrel", KESTREL_ARM64), "is for arm64, not for amd64"),
    ],
)
@pytest.mark.slow
def test_what_a_build_finds(
    make: Callable[[Path], Path], change: Change, message: str, tmp_path: Path
) -> None:
    toml = make(tmp_path)
    library.check(toml, platform=AMD64)
    change(tmp_path)
    told = []
    for operation in (library.check, library.build):
        # Each with an empty cache, which would else have the layers.
        environment = {"FLEDGE_CACHE_DIR": str(tmp_path / operation.__name__)}
        session = Session.default(environment=environment)
        with pytest.raises(FledgeError, match=message) as caught:
            operation(toml, platform=AMD64, session=session)
        told.append((type(caught.value), caught.value.message, caught.value.hint))
    assert told[0] == told[1]


def test_the_lock_counts(tmp_path: Path) -> None:
    toml = project.make_rootfs(tmp_path)
    library.lock(toml, AMD64)
    images.write_layout(tmp_path / "layout", images.image(pack(file("a", b""))), "hello")
    with pytest.raises(CorruptError, match="the lock pins"):
        library.check(toml, platform=AMD64)
    (tmp_path / "fledge.lock").write_text("[image]\n")
    with pytest.raises(ConfigError, match=r"fledge\.lock"):
        library.check(toml, platform=AMD64)


def test_what_must_be_fetched_is_left_out(
    tmp_path: Path, fledge: Fledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is asked, not even a daemon, and what is here is checked all the same."""
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    monkeypatch.setenv("FLEDGE_GITHUB_API", "http://127.0.0.1:1")
    project.make(tmp_path, project.MAPPINGS, '[source]\nimage = "docker-daemon:app"\n')
    done = fledge("check", "--platform", "linux/amd64")
    assert (done.code, done.out) == (0, "fledge.toml is valid\n")
    for role in ("image", "busybox", "agent"):
        assert f"{role:9} must be fetched, so it is not checked" in done.err
    project.make(tmp_path, project.LOCAL_AGENT, '[source]\nimage = "nginx"\n')
    (tmp_path / "kestrel").write_bytes(KESTREL_ARM64)
    done = fledge("check", "--platform", "linux/amd64")
    assert done.code == 4
    assert "is for arm64, not for amd64" in done.err


@pytest.mark.parametrize("platform", [None, AMD64, "linux/arm64"])
def test_the_architecture_of_a_busybox_that_is_not_here(
    platform: str | None, tmp_path: Path
) -> None:
    """That of the default is known; any other is for the platform, if that is known."""
    project.write(tmp_path, "kestrel", KESTREL_ARM64)
    digest = hashlib.sha256(b"nowhere").hexdigest()
    other = f'[source]\nbusybox_url = "http://127.0.0.1:1/b"\nbusybox_sha256 = "{digest}"\n'
    toml = project.make(tmp_path, project.LOCAL_AGENT, other, files={})
    if platform == AMD64:
        with pytest.raises(CorruptError, match="is for arm64, not for amd64"):
            library.check(toml, platform=platform)
    else:
        library.check(toml, platform=platform)
    toml = project.make(tmp_path, project.LOCAL_AGENT, "[source]\n", files={})
    with pytest.raises(FledgeError, match=r"arm64, not for amd64|amd64, not for linux/arm64"):
        library.check(toml, platform=platform)


def test_a_source_of_ones_own(tmp_path: Path) -> None:
    SOURCES.append(greeting.KIND)
    try:
        toml = project.make(tmp_path)
        with toml.open("a") as text:
            text.write('[greeting]\nurl = "file:///gone"\n')
        with pytest.raises(ConfigError, match="file:///gone cannot be read"):
            library.check(toml)
        edit("file:///gone", "https://example.org/greeting")(tmp_path)
        assert library.check(toml).source(Busybox)
    finally:
        SOURCES.remove(greeting.KIND)


def test_nothing_is_written_beside_the_config(tmp_path: Path) -> None:
    toml = project.make_rootfs(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    library.check(toml, platform=AMD64)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
