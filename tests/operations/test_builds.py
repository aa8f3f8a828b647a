"""Builds of several projects, and of what has changed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import fledge
from fledge.errors import ConfigError
from fledge.operations.builds import BuildResult, build_all
from tests.support import images, project, tars
from tests.support.httpd import Server, status

pytestmark = pytest.mark.slow

BASES = ("linux/amd64", "linux/arm64")


def make_all(folder: Path, count: int = 3) -> list[Path]:
    return [project.make(folder / f"p{number}") for number in range(count)]


def status_of(results: list[BuildResult]) -> list[str]:
    return [
        "built" if each.artifact else "up to date" if each.unchanged else "failed"
        for each in results
    ]


def test_the_same_bytes_as_one_by_one(tmp_path: Path) -> None:
    tomls = [*make_all(tmp_path), project.make_rootfs(tmp_path / "disk")]
    results = build_all(tomls)
    assert [each.path for each in results] == [
        *(tmp_path / f"p{number}" / "plugin.cpio.gz" for number in range(3)),
        tmp_path / "disk" / "layout.img",
    ]
    for toml, result in zip(tomls, results, strict=True):
        alone = fledge.build(toml, tmp_path / f"{toml.parent.name}.out")
        assert result.artifact
        assert result.path
        assert result.path.read_bytes() == alone.path.read_bytes()
        assert result.artifact.inputs == alone.inputs


def test_one_that_fails_leaves_the_others(tmp_path: Path) -> None:
    tomls = make_all(tmp_path, 5)
    (tmp_path / "p1" / "kestrel").write_bytes(b"no program")
    tomls[3].write_text("version = 1\n")
    results = build_all([*tomls, tmp_path / "none" / "fledge.toml"])
    assert status_of(results) == ["built", "failed", "built", "failed", "built", "failed"]
    assert [each.error.exit_code for each in results if each.error] == [4, 2, 2]
    assert "is not a program" in str(results[1].error)
    assert results[1].path == tmp_path / "p1" / "plugin.cpio.gz"
    assert isinstance(results[3].error, fledge.InvalidConfig)
    assert results[3].error.details
    assert results[3].path is None
    assert not (tmp_path / "p1" / "plugin.cpio.gz").exists()


def test_two_that_would_write_the_same_file(tmp_path: Path) -> None:
    tomls = make_all(tmp_path, 2)
    beside = shutil.copy(tomls[0], tomls[0].with_name("other.toml"))
    for configs, output in (([tomls[0], beside, tomls[1]], None), (tomls, tmp_path)):
        with pytest.raises(ConfigError, match="would both be written to"):
            build_all(configs, output)
    assert not list(tmp_path.glob("**/plugin.cpio.gz"))


def test_one_that_would_write_what_another_reads(tmp_path: Path) -> None:
    other = f'{project.MAPPINGS}"../p0" = "/opt/other"\n'
    tomls = [
        project.make(tmp_path / "p0"),
        project.make(tmp_path / "p1", project.LOCAL_AGENT, other),
    ]
    with pytest.raises(ConfigError, match=r"p0 would be written to .*p0, which is an input of"):
        build_all(tomls)
    assert not list(tmp_path.glob("**/plugin.cpio.gz"))


def test_into_a_folder(tmp_path: Path) -> None:
    tomls = [project.make(tmp_path / "a"), project.make_rootfs(tmp_path / "b")]
    (tmp_path / "out").mkdir()
    build_all(tomls, tmp_path / "out")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"plugin.cpio.gz", "layout.img"} <= written
    results = build_all(tomls, tmp_path / "file")
    assert status_of(results) == ["failed", "failed"]
    assert "is not a folder" in str(results[0].error)


def test_several_platforms(tmp_path: Path) -> None:
    tars_of = {name: tars.pack(tars.file("arch", name.encode())) for name in BASES}
    variants = [images.image(tars_of[name], architecture=name.partition("/")[2]) for name in BASES]
    images.write_layout(tmp_path / "layout", images.index(*variants), "v1.2")
    toml = project.write(
        tmp_path,
        "fledge.toml",
        b'version = "1"\nstrategy = "oci_rootfs"\n[source]\nimage = "oci:layout:v1.2"\n'
        b'[agent]\nsource_strategy = "local"\npath = "kestrel"\n',
    )
    project.write(tmp_path, "kestrel", b"#!/bin/sh\n")
    results = build_all([toml], platforms=[*BASES, BASES[0]])
    names = [each.path.name for each in results if each.path]
    assert names == ["layout-amd64.img", "layout-arm64.img"]
    for platform, result in zip(BASES, results, strict=True):
        assert result.artifact
        assert str(result.artifact.platform) == platform
        assert result.name.endswith(f" for {platform}")
    one = build_all([toml], platforms=[BASES[1]])
    assert [each.path for each in one] == [tmp_path / "layout.img"]
    again = build_all([toml], platforms=BASES, only_changed=True)
    assert status_of(again) == ["up to date", "up to date"]


def test_names_are_looked_up_once_for_all(tmp_path: Path, github: Server) -> None:
    agent = project.program(body=b"agent")
    github.answers["/kestrel"] = status(200, agent)
    github.answers["/repos/volantvm/volant/releases/latest"] = status(
        200,
        b'{"tag_name": "v1", "assets": [{"name": "kestrel", "browser_download_url": "%s"}]}'
        % github.url("/kestrel").encode(),
    )
    tomls = [
        project.make(tmp_path / name, '[agent]\nversion = "latest"\n', files={}) for name in "abcd"
    ]
    results = build_all(tomls)
    assert status_of(results) == ["built"] * 4
    assert sorted(each.path for each in github.seen) == [
        "/kestrel",
        "/repos/volantvm/volant/releases/latest",
    ]
    assert not list(tmp_path.glob("**/fledge.lock"))
    github.seen.clear()
    assert status_of(build_all(tomls, only_changed=True)) == ["up to date"] * 4
    lookups = fledge.Lookups()
    for toml in tomls:
        fledge.lock(toml, lookups=lookups)
    assert len(github.seen) == 4  # a release, and its agent without a checksum, for each of two
    assert status_of(build_all(tomls, locked=True, only_changed=True)) == ["up to date"] * 4
    assert len(github.seen) == 4


def test_a_name_that_cannot_be_looked_up(tmp_path: Path, github: Server) -> None:
    tomls = make_all(tmp_path, 2)
    tomls.append(project.make(tmp_path / "x", '[agent]\nversion = "v9"\n', files={}))
    results = build_all(tomls)
    assert status_of(results) == ["built", "built", "failed"]
    assert "kestrel has no release 'v9'" in str(results[2].error)


def changed_after(folder: Path, change: Callable[[Path], object], **options: object) -> list[str]:
    """Build, change something, and return what a build of what has changed does, twice."""
    toml = folder / "fledge.toml"
    assert status_of(build_all([toml])) == ["built"]
    assert status_of(build_all([toml], only_changed=True)) == ["up to date"]
    change(folder)
    first = build_all([toml], only_changed=True, **options)  # type: ignore[arg-type]
    second = build_all([toml], only_changed=True, **options)  # type: ignore[arg-type]
    return [*status_of(first), *status_of(second)]


def unlink(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def append(name: str, data: bytes = b"\n") -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.write(data)

    return change


def retarget(folder: Path) -> None:
    (folder / "payload/site/link").unlink()
    (folder / "payload/site/link").symlink_to("elsewhere")


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    toml = project.make(tmp_path)
    (tmp_path / "payload/site/link").symlink_to("index.html")
    (tmp_path / "payload/site/empty").mkdir()
    toml.write_text(
        toml.read_text() + '\n[manifest]\nname = "web"\nversion = "1"\n'
        "resources = {cpu_cores = 1, memory_mb = 64}\n"
        'workload = {entrypoint = ["/bin/sh"], base_url = "http://127.0.0.1:80"}\n'
    )
    return tmp_path


@pytest.mark.parametrize(
    "change",
    [
        append("payload/webserver.yaml"),
        append("kestrel"),
        append("fledge.toml", b'\n[manifest.labels]\na = "b"\n'),
        append("plugin.cpio.gz"),
        append("plugin.cpio.gz.provenance.json", b"x"),
        append("plugin.cpio.gz.manifest.json"),
        unlink("plugin.cpio.gz"),
        unlink("plugin.cpio.gz.provenance.json"),
        unlink("plugin.cpio.gz.manifest.json"),
        unlink("payload/site/img/logo.svg"),
        unlink("payload/site/link"),
        retarget,
        lambda folder: (folder / "payload/site/index.html").chmod(0o755),
        lambda folder: (folder / "payload/site/empty").rmdir(),
        lambda folder: (folder / "payload/site/more").mkdir(),
        lambda folder: (folder / "payload/site/index.html").rename(folder / "payload/site/x"),
    ],
    ids=[
        *("content", "agent", "config", "artifact", "provenance", "manifest"),
        *("no-artifact", "no-provenance", "no-manifest", "no-file", "no-link"),
        *("link", "mode", "no-folder", "new-folder", "name"),
    ],
)
def test_what_has_changed_is_built(plugin: Path, change: Callable[[Path], object]) -> None:
    assert changed_after(plugin, change) == ["built", "up to date"]


def test_what_makes_no_difference_is_not_built(plugin: Path) -> None:
    def touch(folder: Path) -> None:
        for path in folder.glob("**/*"):
            os.utime(path, (time.time(), 86400), follow_symlinks=False)
        (folder / "payload/webserver").chmod(0o700)  # in /usr/bin it is 0755 in any case

    assert changed_after(plugin, touch) == ["up to date", "up to date"]


def test_another_time_is_a_change(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = changed_after(plugin, lambda _: monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400"))
    assert ends == ["built", "up to date"]


def test_another_url_is_a_change(plugin: Path) -> None:
    url = "https://plugins.example.org"
    ends = changed_after(plugin, lambda folder: None, base_url=url)
    assert ends == ["built", "up to date"]


def test_another_platform_is_a_change(tmp_path: Path) -> None:
    project.make_rootfs(tmp_path)
    ends = changed_after(tmp_path, lambda folder: None, platforms=["linux/arm64"])
    assert ends[0] != "up to date"


def test_another_pin_is_a_change(tmp_path: Path) -> None:
    toml = project.make_rootfs(tmp_path)
    image = images.image(tars.pack(tars.file("new", b"")))

    def push(folder: Path) -> None:
        images.write_layout(folder / "layout", image, "hello")

    fledge.lock(toml)
    kept = shutil.copytree(tmp_path / "layout", tmp_path / "kept")
    assert changed_after(tmp_path, push) == ["up to date", "up to date"]  # by the lock
    fledge.lock(toml)
    assert status_of(build_all([toml], only_changed=True)) == ["built"]
    toml.with_suffix(".lock").unlink()
    assert status_of(build_all([toml], only_changed=True)) == ["up to date"]
    shutil.rmtree(tmp_path / "layout")
    kept.rename(tmp_path / "layout")
    assert status_of(build_all([toml], only_changed=True)) == ["built"]
