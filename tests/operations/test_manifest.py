"""The plugin manifest of a build: what it takes from the image, the project and the artifact."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import fledge as library
from fledge.errors import ConfigError, CorruptError
from fledge.project.manifest import parse
from fledge.report import Reporter
from tests.support import images, project, tars
from tests.support.project import Fledge

TREE = (
    tars.folder("usr/sbin"),
    tars.folder("srv/app"),
    tars.file("bin/crlf", b"#!/bin/sh\r\n", mode=0o755),
    tars.file("bin/arm", project.program(183), mode=0o755),
    tars.file("bin/lost", b"#!/bin/python\n", mode=0o755),
    tars.file("usr/sbin/nginx", project.program(), mode=0o755),
    tars.file("bin/sh", project.program(), mode=0o755),
    tars.file("srv/app/serve", b"#!/bin/sh\n", mode=0o755),
)

HEAD = 'version = "1"\nstrategy = "oci_rootfs"\n'


class Notes(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def make(folder: Path, config: Mapping[str, object], table: str = "", tag: str = "1.27") -> Path:
    """Write a project with an image that has this ``config``, and return its fledge.toml."""
    image = images.image(tars.pack(*TREE), config=config)
    images.write_layout(folder / "layout", image, tag)
    project.write(folder, "kestrel", project.FILES["kestrel"].replace(b"busybox ", b""))
    text = f"""{HEAD}
        [source]
        image = "oci:layout:{tag}"
        [filesystem]
        size_buffer_mb = 64
        {project.LOCAL_AGENT}
        [manifest]
        {table}
    """
    return project.write(folder, "fledge.toml", text.encode())


def build(folder: Path, config: Mapping[str, object], table: str = "") -> tuple[Any, list[str]]:
    """Build and return the manifest, read from its file, and the notes."""
    reporter = Notes()
    session = library.Session.default(reporter=reporter)
    toml = make(folder, config, table)
    made = library.build(toml, folder / "out.img", platform="linux/amd64", session=session)
    text = (folder / "out.manifest.json").read_text()
    document = json.loads(text)
    assert parse(document) == made.manifest
    assert document["rootfs"]["checksum"] == str(made.digest)
    return document, reporter.notes


HTTP = 'workload.base_url = "http://127.0.0.1:9000"\n'


@pytest.mark.parametrize(
    ("config", "table", "entrypoint", "more"),
    [
        (
            {"Entrypoint": ["nginx", "-g"], "Cmd": ["daemon off;"], "ExposedPorts": {"80/tcp": {}}},
            "",
            ["/usr/sbin/nginx", "-g", "daemon off;"],
            {"base_url": "http://127.0.0.1:80"},
        ),
        ({"Entrypoint": ["/usr/sbin/nginx"]}, HTTP, ["/usr/sbin/nginx"], {}),
        (
            {"Cmd": ["/bin/sh", "-c", "exec nginx"]},
            HTTP,
            ["/bin/sh", "-c", "exec nginx"],
            {"base_url": "http://127.0.0.1:9000"},
        ),
        ({"Cmd": "exec nginx"}, HTTP, ["/bin/sh", "-c", "exec nginx"], {}),
        (
            {"Cmd": ["./serve", "a b"], "WorkingDir": "/srv/app"},
            HTTP,
            ["/srv/app/serve", "a b"],
            {"workdir": "/srv/app"},
        ),
        (
            {"Cmd": ["serve"], "Env": ["PATH=/srv/app:/bin", "OPTS=-a=b c", "NAME=größer", "E"]},
            HTTP,
            ["/srv/app/serve"],
            {"env": {"PATH": "/srv/app:/bin", "OPTS": "-a=b c", "NAME": "größer", "E": ""}},
        ),
        (
            {"Cmd": ["nginx"], "Env": ["A=1", "B=2"]},
            HTTP + 'workload.env = {B = "3", C = "4"}\n',
            ["/usr/sbin/nginx"],
            {"env": {"A": "1", "B": "3", "C": "4"}},
        ),
        (
            {"Cmd": ["nginx"], "WorkingDir": "/tmp/"},
            HTTP,
            ["/usr/sbin/nginx"],
            {"workdir": "/tmp/"},
        ),
        (
            {"Entrypoint": ["/gone"], "Cmd": ["x"]},
            HTTP + 'workload.entrypoint = ["sh", "-c", "true"]\n',
            ["/bin/sh", "-c", "true"],
            {},
        ),
        (
            {},
            'workload = {type = "exec", entrypoint = ["/usr/sbin/nginx"]}\n',
            ["/usr/sbin/nginx"],
            {"type": "exec"},
        ),
        (
            {"Cmd": ["nginx"], "ExposedPorts": {"53/udp": {}, "8080/tcp": {}, "443/tcp": {}}},
            "",
            ["/usr/sbin/nginx"],
            {"base_url": "http://127.0.0.1:443"},
        ),
    ],
)
def test_images_of_the_kinds_that_people_use(
    tmp_path: Path,
    config: dict[str, object],
    table: str,
    entrypoint: list[str],
    more: dict[str, object],
) -> None:
    document, _ = build(tmp_path, config, table)
    workload = document["workload"]
    assert workload["entrypoint"] == entrypoint
    assert {key: workload[key] for key in more} == more
    assert document["enabled"] is True
    assert (document["schema_version"], document["name"]) == ("1.0", "out")
    assert (document["version"], document["runtime"]) == ("1.27", "out")
    assert document["rootfs"]["url"] == str(tmp_path / "out.img")
    assert document["image"] == "oci:layout:1.27"


def test_what_volant_does_not_do_is_a_note(tmp_path: Path) -> None:
    config = {
        "Cmd": ["nginx", " "],
        "User": "www-data",
        "ExposedPorts": {"80/tcp": {}, "443/tcp": {}},
        "Healthcheck": {"Test": ["CMD", "true"]},
        "Env": ["SPACED= x "],
    }
    _, notes = build(tmp_path, config)
    said = "\n".join(notes)
    assert "the image runs as user www-data; Volant runs it as root" in said
    assert "the health check of the image is a command" in said
    assert "the image exposes 443/tcp" in said
    assert "Volant removes the spaces around the value of SPACED" in said
    assert "Volant leaves out the empty arguments" in said


@pytest.mark.parametrize(
    ("config", "table", "words"),
    [
        ({"Cmd": ["gone"]}, HTTP, "the artifact has no program gone in PATH=/usr/local/sbin:"),
        ({"Cmd": ["./gone"]}, HTTP, "the artifact has no program ./gone below /"),
        ({}, HTTP, "the plugin manifest is not complete: workload: entrypoint is missing"),
        ({"Cmd": ["nginx"]}, "", "the plugin manifest is not complete: workload: base_url must"),
        (
            {"Cmd": ["nginx"], "Env": [f"V{n}={n * 7919:x}{n * 104729:x}" for n in range(150)]},
            HTTP,
            "the plugin manifest is .* bytes too long",
        ),
        ({"Cmd": ["crlf"]}, HTTP, "cannot run: the first line of /bin/crlf ends with a carriage"),
        ({"Cmd": ["arm"]}, HTTP, "cannot run: /bin/arm is for arm64, not for amd64"),
        ({"Cmd": ["lost"]}, HTTP, "cannot run: /bin/lost needs /bin/python, but /bin/python does"),
        ({"Cmd": ["nginx"], "WorkingDir": "/gone"}, HTTP, "the artifact has no folder /gone"),
        (
            {"Cmd": ["nginx"], "Env": ["A=\0"]},
            HTTP,
            "workload: entrypoint and env must not have NUL",
        ),
        ({"Cmd": ["nginx"]}, "resources.cpus = 1\n", r"toml:\d+: \[manifest\] resources: Volant"),
    ],
)
def test_what_stops_a_build(
    tmp_path: Path, config: dict[str, object], table: str, words: str
) -> None:
    toml = make(tmp_path, config, table)
    (tmp_path / "out.img").write_bytes(b"old")
    with pytest.raises(ConfigError, match=words) as raised:
        library.build(toml, tmp_path / "out.img", platform="linux/amd64")
    assert raised.value.hint or raised.value.details
    assert (tmp_path / "out.img").read_bytes() == b"old"
    assert not list(tmp_path.glob("*.json"))


def test_ports_that_are_not_one_tcp_port(tmp_path: Path) -> None:
    odd = ("80-90/tcp", "web", "0/tcp", "99999/tcp", "53/udp")
    config = {"Cmd": ["nginx"], "ExposedPorts": {each: {} for each in odd}}
    with pytest.raises(ConfigError, match="base_url must be a URL"):
        build(tmp_path, config)
    config["ExposedPorts"] = {each: {} for each in (*odd, "81/tcp")}
    document, _ = build(tmp_path, config)
    assert document["workload"]["base_url"] == "http://127.0.0.1:81"


def test_a_port_that_begins_like_that_of_the_workload(tmp_path: Path) -> None:
    config = {"Cmd": ["nginx"], "ExposedPorts": {"90/tcp": {}, "9000/tcp": {}}}
    _, notes = build(tmp_path, config, HTTP)
    assert any("the image exposes 90/tcp;" in each for each in notes)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no JSON",
        b"[" * 100_000,
        b"\xff\xfe\0",
        b"1" * 5000,
        b'{"config": {"Cmd": ["\\ud800"]}}',
    ],
    ids=["empty", "text", "deep", "bytes", "number", "surrogate"],
)
def test_a_config_of_an_image_that_is_not_json(tmp_path: Path, content: bytes) -> None:
    toml = project.make(tmp_path)
    project.write(tmp_path, "odd", content)
    text = toml.read_text().replace("[mappings]", '[mappings]\nodd = "/etc/fsify-entrypoint"')
    toml.write_text(text + f'[manifest]\nname = "a"\nversion = "1"\n{HTTP}')
    with pytest.raises(CorruptError, match="the config of the image is malformed: it is not JSON"):
        library.build(toml, tmp_path / "out.cpio.gz")
    assert not list(tmp_path.glob("out.*"))


def test_where_the_artifact_will_be(tmp_path: Path, fledge: Fledge) -> None:
    make(tmp_path, {"Cmd": ["nginx"]}, HTTP)
    arguments = ("build", "--platform", "linux/amd64", "-o")
    for wrong in ("ftp://example.org", "/srv", "example.org"):
        done = fledge(*arguments, "a.img", "--base-url", wrong)
        assert done.code == 2
        assert f"{wrong} is not an http or https URL" in done.err
    assert fledge(*arguments, "a #1.img", "--base-url", "https://example.org/x/").code == 0
    document = json.loads((tmp_path / "a #1.manifest.json").read_text())
    assert document["rootfs"]["url"] == "https://example.org/x/a%20%231.img"
    done = fledge(*arguments, os.fsdecode(b"\xff.img"))
    assert done.code == 2
    assert "is not UTF-8, so a plugin manifest cannot name it" in done.err


def test_a_check_finds_what_a_manifest_lacks(tmp_path: Path, fledge: Fledge) -> None:
    make(tmp_path, {"Cmd": ["nginx"]})
    done = fledge("check", "--platform", "linux/amd64")
    assert done.code == 2
    assert "the plugin manifest is not complete: workload: base_url" in done.err
    make(tmp_path, {"Cmd": ["nginx"]}, HTTP)
    assert fledge("check", "--platform", "linux/amd64").code == 0


def test_a_key_that_volant_does_not_know(tmp_path: Path, fledge: Fledge) -> None:
    make(tmp_path, {"Cmd": ["nginx"]}, "nmae = 'x'\n")
    assert "[manifest] Volant knows no key nmae\n" in fledge("check").err


@pytest.mark.slow
def test_a_file_of_the_original(tmp_path: Path, fledge: Fledge) -> None:
    toml = make(tmp_path, {"Cmd": ["nginx"]})
    toml.write_text(toml.read_text().partition("[manifest]")[0])
    settings = """
        schema_version = "v1"
        name = "web"
        version = "2.0.0"
        runtime = "web"
        [workload]
        base_url = "http://127.0.0.1:80"
        entrypoint = "/usr/sbin/nginx"
        args = ["-g", "daemon off;"]
        [env]
        A = "1"
    """
    project.write(tmp_path, "manifest.toml", settings.encode())
    arguments = ("--platform", "linux/amd64", "-o", "nginx.img")
    done = fledge("build", *arguments, "--base-url", "https://example.org/plugins/")
    assert done.code == 0, done.err
    document = json.loads((tmp_path / "nginx.manifest.json").read_text())
    assert document["workload"]["entrypoint"] == ["/usr/sbin/nginx", "-g", "daemon off;"]
    assert document["workload"]["env"] == {"A": "1"}
    assert document["rootfs"]["url"] == "https://example.org/plugins/nginx.img"
    printed = fledge("manifest", "nginx.img", "--base-url", "https://example.org/plugins")
    assert printed.out == (tmp_path / "nginx.manifest.json").read_text()
    assert fledge("verify", "nginx.img").code == 0
    (tmp_path / "manifest.toml").rename(tmp_path / "other.toml")
    again = fledge("build", *arguments, "-m", "other.toml")
    assert again.code == 0, again.err
    toml.write_text(toml.read_text() + "[manifest]\n")
    both = fledge("build", *arguments, "-m", "other.toml")
    assert both.code == 2
    assert "[manifest] excludes other.toml; keep one of the two" in both.err


@pytest.mark.slow
def test_verify_compares_the_manifest(tmp_path: Path, fledge: Fledge) -> None:
    make(tmp_path, {"Cmd": ["nginx"]}, HTTP + 'url = "https://example.org/a.img"\n')
    assert fledge("build", "--platform", "linux/amd64", "-o", "a.img").code == 0
    assert fledge("verify", "a.img").code == 0
    path = tmp_path / "a.manifest.json"
    path.write_text(path.read_text().replace("nginx", "other"))
    changed = fledge("verify", "a.img")
    assert changed.code == 1
    assert "a.manifest.json: recorded sha256 " in changed.out + changed.err
    path.unlink()
    assert fledge("verify", "a.img").code == 1


def test_two_builds_by_two_paths_and_users(tmp_path: Path, fledge: Fledge) -> None:
    made = []
    for name in ("here", "there"):
        make(tmp_path / name, {"Cmd": ["nginx"]}, HTTP + 'url = "https://example.org/a.img"\n')
        library.build(
            tmp_path / name / "fledge.toml", tmp_path / name / "a.img", platform="linux/amd64"
        )
        made.append((tmp_path / name / "a.manifest.json").read_bytes())
    assert made[0] == made[1]


def test_nothing_to_say(tmp_path: Path, fledge: Fledge) -> None:
    project.make_rootfs(tmp_path)
    assert fledge("build", "-o", "a.img").code == 0
    assert not (tmp_path / "a.manifest.json").exists()
    for command in (("manifest", "a.img"), ("build", "--base-url", "https://example.org")):
        done = fledge(*command)
        assert done.code == 2
        assert "says nothing about a plugin manifest" in done.err
