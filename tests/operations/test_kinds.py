"""A format and a source, each added in one module without other changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import fledge
from fledge.errors import ConfigError
from fledge.formats import FORMATS
from fledge.project import lock, provenance
from fledge.project.jsonschema import json_schema
from fledge.sources.kinds import SOURCES
from tests.support import greeting, project
from tests.support.httpd import Server, content
from tests.support.plain_tar import PlainTar
from tests.support.project import Fledge

AMD64 = "linux/amd64"


@pytest.fixture
def fledge_run(request: pytest.FixtureRequest) -> Fledge:
    run: Fledge = request.getfixturevalue("fledge")
    return run


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def plain_tar() -> Iterator[None]:
    FORMATS.append(PlainTar)
    yield
    FORMATS.remove(PlainTar)


@pytest.fixture
def greeting_kind() -> Iterator[None]:
    SOURCES.append(greeting.KIND)
    yield
    SOURCES.remove(greeting.KIND)


def tar_project(folder: Path, options: str = "") -> Path:
    """A project like that of `project.make_rootfs`, with type = "tar"."""
    toml = project.make_rootfs(folder)
    text, _, rest = toml.read_text().partition("[filesystem]")
    rest = "\n".join(line for line in rest.splitlines() if "size_buffer_mb" not in line)
    toml.write_text(f'{text}[filesystem]\ntype = "tar"\n{options}{rest}\n')
    return toml


@pytest.mark.usefixtures("plain_tar")
@pytest.mark.slow
def test_a_format_is_one_module(tmp_path: Path, fledge_run: Fledge) -> None:
    toml = tar_project(tmp_path / "tar", 'comment = "hello"')
    artifact = fledge.build(toml, tmp_path / "x.tar", platform=AMD64)
    disk = fledge.build(project.make_rootfs(tmp_path / "disk"), tmp_path / "x.img", platform=AMD64)
    # verify builds it again and compares.
    assert fledge.verify(artifact.path, toml).equal
    # diff: the tree equals that of the ext4 image.
    difference = fledge.diff(artifact.path, disk.path)
    assert difference.same_tree
    assert not difference.same_bytes
    assert difference.not_compared == ("/lost+found",)
    # inspect: the facts of every artifact, and its own.
    summary = fledge.inspect(artifact.path)
    of_disk = fledge.inspect(disk.path).names
    assert summary.names == {**of_disk, "directory": of_disk["directory"] - 1}  # /lost+found
    done = fledge_run("inspect", artifact.path)
    assert "kind         tar" in done.out
    assert f"entries      {artifact.entries}" in done.out
    described = json.loads(fledge_run("inspect", "--json", artifact.path).out)
    assert described["kind"] == "tar"
    assert described["tar"] == {"entries": artifact.entries}
    assert all("position" in entry for entry in described["entries"])
    done = fledge_run("inspect", artifact.path, "/etc/webserver/config.yaml")
    assert done.out == "port: 80\n"


@pytest.mark.usefixtures("plain_tar")
@pytest.mark.slow
def test_a_change_is_told_in_the_words_of_the_format(tmp_path: Path) -> None:
    one = fledge.build(tar_project(tmp_path / "one"), tmp_path / "1.tar", platform=AMD64)
    toml = tar_project(tmp_path / "two", 'comment = "longer than the other"')
    project.write(tmp_path / "two", "payload/webserver.yaml", b"port: 81\n" * 100)
    two = fledge.build(toml, tmp_path / "2.tar", platform=AMD64)
    difference = fledge.diff(one.path, two.path)
    assert [change.path for change in difference.changes] == [b"etc/webserver/config.yaml"]
    assert difference.details["position"].path == b"usr"


@pytest.mark.usefixtures("plain_tar")
def test_the_options_of_a_format_are_its_own(tmp_path: Path) -> None:
    toml = tar_project(tmp_path, "size_buffer_mb = 3")
    with pytest.raises(ConfigError, match=r"size_buffer_mb"):
        fledge.check(toml)
    assert '"tar"' in json.dumps(json_schema())
    assert "written into the archive" in json.dumps(json_schema())


@pytest.mark.usefixtures("plain_tar")
def test_a_format_says_what_it_needs_of_a_kernel(tmp_path: Path, fledge_run: Fledge) -> None:
    toml = tar_project(tmp_path / "tar")
    artifact = fledge.build(toml, tmp_path / "x.tar", platform=AMD64)
    for arguments in (("-c", toml), (artifact.path,)):
        done = fledge_run("check", *arguments, "--kernel", "volant")
        assert done.code == 1
        assert "missing   tar filesystem  CONFIG_TAR_FS\n" in done.out


def test_without_it_the_type_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'type = "tar"'):
        fledge.check(tar_project(tmp_path))


@pytest.mark.usefixtures("greeting_kind")
@pytest.mark.parametrize("kind", [project.make, project.make_rootfs])
@pytest.mark.slow
def test_a_source_is_one_module(tmp_path: Path, kind, server: Server) -> None:  # type: ignore[no-untyped-def]
    toml = kind(tmp_path / "project")
    url = server.url("/greeting")
    server.answers["/greeting"] = content(b"Good morning\n")
    with toml.open("a") as file:
        file.write(f'[greeting]\nurl = "{url}"\n')
    # Pinned in the lock, beside the pins of others.
    fledge.lock(toml, [AMD64])
    pinned = lock.load(lock.path_beside(toml))
    assert pinned
    pin = pinned.sections["greeting"].pins[""]
    assert pin == greeting.GreetingPin(fledge.Digest.of(b"Good morning\n"))
    # Fetched, and then built without a network.
    fledge.fetch(toml, [AMD64])
    del server.answers["/greeting"]
    offline = fledge.Session.default(offline=True)
    artifact = fledge.build(
        toml, tmp_path / "artifact", platform=AMD64, locked=True, session=offline
    )
    with fledge.open_artifact(artifact.path) as opened:
        node = opened.tree.get(b"/etc/motd")
        assert node
    # Recorded, and built again from the record.
    record = provenance.load(artifact.path)
    [item] = [item for item in record.inputs if item.role == "greeting"]
    assert (item.uri, item.digest) == (url, pin.sha256)
    assert fledge.verify(artifact.path, toml, session=offline).equal


@pytest.mark.usefixtures("greeting_kind")
def test_a_lock_without_the_source_is_told(tmp_path: Path) -> None:
    toml = project.make(tmp_path / "project")
    fledge.lock(toml, [AMD64])
    with toml.open("a") as file:
        file.write('[greeting]\nurl = "https://example.org/greeting"\n')
    with pytest.raises(ConfigError, match=r"does not pin the greeting"):
        fledge.build(toml, tmp_path / "artifact", locked=True)
