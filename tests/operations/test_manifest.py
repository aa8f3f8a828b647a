"""The plugin manifest of a build: what it takes from the image, the project and the artifact."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import fledge as library
from fledge.errors import ConfigError, CorruptError, MalformedError
from fledge.project.manifest import command_line, parse, read
from fledge.report import Reporter
from fledge.tree.content import hash_file
from tests.support import images, project, tars
from tests.support.plugin_manifest import NEWER, PUBLISHED, decode
from tests.support.project import Fledge
from tests.support.pythons import nobody

TREE = (
    tars.folder("usr/sbin"),
    tars.folder("srv/app"),
    tars.file("bin/crlf", b"#!/bin/sh\r\n", mode=0o755),
    tars.file("bin/arm", project.program(183), mode=0o755),
    tars.file("bin/lost", b"#!/bin/python\n", mode=0o755),
    tars.file("usr/sbin/nginx", project.program(), mode=0o755),
    tars.file("bin/sh", project.program(), mode=0o755),
    tars.file("srv/app/serve", b"#!/bin/sh\n", mode=0o755),
    tars.file("bin/envy", b"#!/usr/bin/env bash\n", mode=0o755),
    tars.file("usr/bin/env", project.program(), mode=0o755),
    tars.file("run/app", b"#!/bin/sh\n", mode=0o755),
    tars.file("run/sh", b"#!/bin/sh\n", mode=0o755),
    tars.file("bin/hidden", b"#!/run/sh\n", mode=0o755),
    tars.file("bin/old", project.program(3), mode=0o755),
    tars.folder("tmp/here"),
    tars.symlink("var/run", "../run"),
    tars.symlink("tmp/nginx", "/usr/sbin/nginx"),
    tars.symlink("w", "/opt/x"),
    tars.folder("opt/x"),
    tars.file("opt/app", b"#!/bin/sh\n", mode=0o755),
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
    text = (folder / "out.img.manifest.json").read_text()
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
        *(
            ({"Cmd": ["nginx"], "WorkingDir": folder}, HTTP, ["/usr/sbin/nginx"], {})
            for folder in ("/dev/shm", "/var/run", "/dev/pts", "/sys")
        ),
        (
            {"Cmd": ["./app"], "WorkingDir": "/w/.."},
            HTTP,
            ["/w/.././app"],
            {"workdir": "/w/.."},
        ),
        ({"Cmd": ["nginx"], "WorkingDir": "/w/../x"}, HTTP, ["/usr/sbin/nginx"], {}),
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
@pytest.mark.slow
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
    jsonschema.validate(document, PUBLISHED if workload["type"] == "http" else NEWER)
    given = decode(command_line(parse(document), None))
    labels = {"volant.plugin": "out", "volant.runtime": "out"}
    assert read(json.dumps(given).encode()) == parse(document | {"labels": labels})
    for key in ("name", "version", "runtime", "resources", "workload", "rootfs"):
        without = {name: value for name, value in document.items() if name != key}
        with pytest.raises(MalformedError, match=key):
            parse(without)
        with pytest.raises(MalformedError, match=f"^{key}: must be"):
            parse(document | {key: 5})


@pytest.mark.slow
def test_what_needs_a_newer_volant_is_a_choice(tmp_path: Path) -> None:
    exposed = "network = {mode = 'bridged', expose = [{port = 80}]}\n"
    config = {"Cmd": ["nginx"], "ExposedPorts": {"80/tcp": {}}}
    for table, code in (("", True), (exposed, False), ("workload = {type = 'grpc'}\n", False)):
        document, notes = build(tmp_path, config, table)
        jsonschema.validate(document, NEWER)
        assert jsonschema.Draft202012Validator(PUBLISHED).is_valid(document) is code
        assert any("need Volant v0.6.6" in each for each in notes) is not code


@pytest.mark.slow
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
    assert "enabled" not in said
    assert "the image runs as user www-data; Volant runs it as root" in said
    assert "the health check of the image is a command" in said
    assert "the image exposes 443/tcp" in said
    assert "Volant removes the spaces around the value of SPACED" in said
    assert "Volant leaves out the empty arguments" in said
    _, notes = build(tmp_path, config, "enabled = false\n")
    assert "[manifest] says enabled = false, so Volant makes no VM of it" in notes


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
            {"Cmd": ["envy"], "Env": ["PATH=/bin:/usr/bin"]},
            HTTP,
            "/bin/envy needs /usr/bin/env, but env does not find bash in PATH=/bin:/usr/bin",
        ),
        (
            {"Cmd": ["/usr/bin/env", "bash"]},
            HTTP,
            "cannot run: env does not find bash in PATH=/usr/local/bin:/usr/bin:/bin",
        ),
        ({"Cmd": ["old"]}, HTTP, "/bin/old is for 386, not for amd64: the kernel volant has no"),
        (
            {"Cmd": ["/run/app"]},
            HTTP,
            "the entrypoint /run/app is hidden .* a filesystem over /run",
        ),
        ({"Cmd": ["/var/run/app"]}, HTTP, "the entrypoint /var/run/app is hidden .* over /run"),
        ({"Cmd": ["/tmp/nginx"]}, HTTP, "the entrypoint /tmp/nginx is hidden .* over /tmp"),
        ({"Cmd": ["hidden"]}, HTTP, "/bin/hidden needs /run/sh, but /run/sh does not exist"),
        ({"Cmd": ["nginx"], "WorkingDir": "/tmp/here"}, HTTP, "the folder /tmp/here, .* over /tmp"),
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


@pytest.mark.slow
def test_where_the_artifact_will_be(tmp_path: Path, fledge: Fledge) -> None:
    make(tmp_path, {"Cmd": ["nginx"]}, HTTP)
    arguments = ("build", "--platform", "linux/amd64", "-o")
    for wrong in ("ftp://example.org", "/srv", "example.org", "https://", ""):
        done = fledge(*arguments, "a.img", "--base-url", wrong)
        assert done.code == 2
        assert f"{wrong} is not an http or https URL" in done.err
    for wrong in ("https://a/b?c=d", "https://a/b#c", "https://a/b c"):
        done = fledge(*arguments, "a.img", "--base-url", wrong)
        assert done.code == 2
        assert f"{wrong} has a query, a fragment or a space in it" in done.err
        assert "write %20 for a space" in " ".join(done.err.split())
    make(tmp_path, {"Cmd": ["nginx"]}, 'name = "a"\n' + HTTP)
    assert fledge(*arguments, "a #1.img", "--base-url", "https://example.org/x/").code == 0
    document = json.loads((tmp_path / "a #1.img.manifest.json").read_text())
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


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (f"workload.env.LONG = {os.urandom(1500).hex()!r}\n", "bytes too long"),
        ("workload.env.A = 'a\\u0000'\n", "must not have NUL"),
        ("resources.cpu_cores = 5000\n", "resources.cpu_cores: must be at most 4096"),
    ],
)
def test_a_check_without_the_image(tmp_path: Path, fledge: Fledge, table: str, words: str) -> None:
    """What a registry has is not fetched, but what is wrong whatever it has is found."""
    toml = make(tmp_path, {}, table.replace("'", '"'))
    toml.write_text(toml.read_text().replace("oci:layout:1.27", "registry.invalid/app"))
    done = fledge("check")
    assert done.code == 2
    assert words in done.err
    toml.write_text(toml.read_text().replace(table.replace("'", '"'), ""))
    done = fledge("check")
    assert done.code == 0
    assert "must be fetched, so it is not checked" in done.err


def test_a_check_without_busybox(tmp_path: Path, fledge: Fledge) -> None:
    """No image will say which version it is."""
    text = 'version = "1"\nstrategy = "initramfs"\n[manifest]\n'
    toml = project.write(tmp_path, "fledge.toml", text.encode())
    done = fledge("check")
    assert done.code == 2
    assert "the plugin manifest is not complete: version is missing" in done.err
    assert "Set version in [manifest] of fledge.toml." in done.err
    toml.write_text(text + 'version = "1"\n')
    assert fledge("check").code == 0


def test_a_check_of_another_file(tmp_path: Path, fledge: Fledge) -> None:
    toml = make(tmp_path, {"Cmd": ["nginx"]})
    toml.write_text(toml.read_text().partition("[manifest]")[0])
    arguments = ("check", "--platform", "linux/amd64", "-m", "other.toml")
    assert "other.toml: no such file" in fledge(*arguments).err
    project.write(tmp_path, "other.toml", b'version = "1"\n\nnmae = "a"\n')
    done = fledge(*arguments)
    assert done.code == 2
    assert "other.toml:3: Volant knows no key nmae" in done.err
    project.write(tmp_path, "other.toml", b"")
    assert "base_url must be a URL" in fledge(*arguments).err
    project.write(tmp_path, "other.toml", HTTP.encode())
    assert fledge(*arguments).code == 0


def test_all_mistakes_with_their_lines(tmp_path: Path, fledge: Fledge) -> None:
    text = b"""version = 1
        nmae = "a"
        [resources]
        cpu_cores = "2"
        [workload]
        env = {"A=B" = "x"}
        [health_check]
        endpoint = ""
        timeout_ms = 5
    """
    toml = make(tmp_path, {"Cmd": ["nginx"]})
    toml.write_text(toml.read_text().partition("[manifest]")[0])
    project.write(tmp_path, "manifest.toml", text)
    said = fledge("check").err
    assert "manifest.toml has 5 problems:" in said
    for words in (
        "manifest.toml:1: version: must be text in quotes",
        "manifest.toml:2: Volant knows no key nmae: did you mean name?",
        "manifest.toml:4: resources.cpu_cores: write 2, a whole number from 1 to 4096, without",
        'manifest.toml:6: workload.env: "A=B" names no variable',
        "manifest.toml:8: health_check.endpoint: must be the path of a URL, such as /health",
    ):
        assert words in said
    toml.write_text(toml.read_text() + f"[manifest]\n{text.decode()}".replace("[h", "[manifest.h"))
    (tmp_path / "manifest.toml").unlink()
    assert "[manifest] Volant knows no key nmae: did you mean name?\n" in fledge("check").err


def test_a_variable_of_an_image_without_a_name(tmp_path: Path) -> None:
    document, notes = build(tmp_path, {"Cmd": ["nginx"], "Env": ["=x", "A=1"]}, HTTP)
    assert document["workload"]["env"] == {"A": "1"}
    assert "the image sets a variable without a name, which is left out" in notes


def test_a_key_that_volant_does_not_know(tmp_path: Path, fledge: Fledge) -> None:
    make(tmp_path, {"Cmd": ["nginx"]}, "nmae = 'x'\n")
    assert "[manifest] Volant knows no key nmae: did you mean name?\n" in fledge("check").err


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
    document = json.loads((tmp_path / "nginx.img.manifest.json").read_text())
    assert document["workload"]["entrypoint"] == ["/usr/sbin/nginx", "-g", "daemon off;"]
    assert document["workload"]["env"] == {"A": "1"}
    assert document["rootfs"]["url"] == "https://example.org/plugins/nginx.img"
    printed = fledge("manifest", "nginx.img", "--base-url", "https://example.org/plugins")
    assert printed.out == (tmp_path / "nginx.img.manifest.json").read_text()
    assert fledge("verify", "nginx.img").code == 0
    (tmp_path / "manifest.toml").rename(tmp_path / "other.toml")
    again = fledge("build", *arguments, "-m", "other.toml")
    assert again.code == 0, again.err
    toml.write_text(toml.read_text() + "[manifest]\n")
    both = fledge("build", *arguments, "-m", "other.toml")
    assert both.code == 2
    assert "[manifest] excludes other.toml; keep one of the two" in both.err


@pytest.mark.slow
def test_a_manifest_that_the_project_has_no_more(tmp_path: Path, fledge: Fledge) -> None:
    toml = make(tmp_path, {"Cmd": ["nginx"]}, HTTP)
    arguments = ("build", "--platform", "linux/amd64", "-o", "a.img")
    own = tmp_path / "a.img.manifest.json"

    def build_without(name: str, text: bytes | None) -> str:
        project.write(tmp_path, "kestrel", f"#!/bin/sh\n# {name}\n".encode())
        if text is not None:
            own.write_bytes(text)
        toml.write_text(toml.read_text().partition("[manifest]")[0])
        done = fledge(*arguments)
        assert done.code == 0, done.err
        return " ".join(done.err.split())

    assert fledge(*arguments).code == 0
    stale = own.read_bytes()
    said = build_without("other", None)
    assert "a.img.manifest.json is removed: fledge.toml has no [manifest] any more" in said
    assert not own.exists()
    foreign = "a.img.manifest.json is not for this artifact: remove it, or add [manifest] to fledge"
    assert foreign in build_without("third", stale)
    assert own.read_bytes() == stale
    digest = hashlib.sha256((tmp_path / "a.img").read_bytes()).hexdigest()
    for checksum in (digest, ""):
        document = json.loads(stale)
        document["rootfs"]["checksum"] = checksum
        assert "a.img.manifest.json" not in build_without("third", json.dumps(document).encode())
        assert own.exists()


@pytest.mark.slow
def test_verify_compares_the_manifest(tmp_path: Path, fledge: Fledge) -> None:
    make(tmp_path, {"Cmd": ["nginx"]}, HTTP + 'url = "https://example.org/a.img"\n')
    assert fledge("build", "--platform", "linux/amd64", "-o", "a.img").code == 0
    assert fledge("verify", "a.img").code == 0
    path = tmp_path / "a.img.manifest.json"
    path.write_text(path.read_text().replace("nginx", "other"))
    changed = fledge("verify", "a.img")
    assert changed.code == 1
    assert "a.img.manifest.json: recorded sha256 " in changed.out + changed.err
    path.unlink()
    assert fledge("verify", "a.img").code == 1


@pytest.mark.real
def test_two_builds_by_two_users(
    tmp_path: Path, fledge: Fledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other user has another home, folder, umask, time zone and locale."""
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    config = {"Cmd": ["nginx"], "Env": ["NAME=größer"], "ExposedPorts": {"80/tcp": {}}}
    build = ("build", "--platform", "linux/amd64", "-o", "a.img")
    options = (*build, "--base-url", "https://example.org")
    make(tmp_path, config)
    assert fledge(*options).code == 0
    with nobody() as user:
        make(user.home, config)
        settings = ["env", "TZ=Asia/Tokyo", "LC_ALL=C", "TMPDIR=/dev/shm"]
        shell = ["sh", "-c", 'umask 077; exec "$@"', "sh"]
        done = user.run([*settings, *shell, user.python, "-m", "fledge", *options])
        assert done.returncode == 0, done.stderr
        for name in ("a.img", "a.img.manifest.json", "a.img.provenance.json"):
            assert (user.home / name).read_bytes() == (tmp_path / name).read_bytes()
            if os.geteuid() == 0:
                assert (user.home / name).stat().st_uid != (tmp_path / name).stat().st_uid


@pytest.mark.slow
def test_artifacts_in_one_folder_keep_their_manifests(tmp_path: Path, fledge: Fledge) -> None:
    project.make(tmp_path)
    base = (tmp_path / "fledge.toml").read_bytes()
    settings = b"""
        [manifest]
        version = "1"
        workload = {base_url = "http://127.0.0.1:80", entrypoint = ["/bin/kestrel"]}
    """
    artifacts = {}
    for compression in ("gzip", "zstd", "lz4", "none"):
        text = f'[archive]\ncompression = "{compression}"\n'.encode()
        project.write(tmp_path, "fledge.toml", base + settings + text)
        done = fledge("build")
        assert done.code == 0, done.err
        artifacts[done.out.strip()] = compression
    assert set(artifacts) == {f"plugin.cpio{each}" for each in (".gz", ".zst", ".lz4", "")}
    for name in ("web.img", "web.cpio.gz"):
        project.write(tmp_path, "fledge.toml", base + settings)
        if name == "web.img":
            make(tmp_path, {"Cmd": ["nginx"]}, HTTP)
        assert fledge("build", "--platform", "linux/amd64", "-o", name).code == 0
        artifacts[name] = "gzip"
    for name in artifacts:
        found = read((tmp_path / f"{name}.manifest.json").read_bytes())
        assert found.url == str(tmp_path / name)
        assert found.digest == hash_file(tmp_path / name).digest


NAMES = ("a b", "a\nb", 'a"b', "größer", "-a", "a/b", "")


@pytest.mark.parametrize("name", NAMES)
def test_names_that_no_command_line_holds(tmp_path: Path, fledge: Fledge, name: str) -> None:
    """A name or runtime is refused where it is written."""
    for key in ("name", "runtime"):
        toml = make(tmp_path, {"Cmd": ["nginx"]}, HTTP + f"{key} = {json.dumps(name)}\n")
        line = next(
            number
            for number, text in enumerate(toml.read_text().splitlines(), 1)
            if text.startswith(f"{key} =")
        )
        for command in ("check", "build"):
            done = fledge(command, "--platform", "linux/amd64")
            assert done.code == 2
            assert f"fledge.toml:{line}: [manifest] {key}: must begin with a letter" in done.err
    settings = f'version = "1"\nname = {json.dumps(name)}\n'
    project.write(tmp_path, "manifest.toml", settings.encode())
    toml.write_text(toml.read_text().partition("[manifest]")[0])
    done = fledge("build", "--platform", "linux/amd64")
    assert done.code == 2
    assert "manifest.toml:2: name: must begin with a letter" in done.err
    assert not list(tmp_path.glob("*.json"))


def test_a_name_of_an_artifact_that_is_no_name_of_a_plugin(tmp_path: Path, fledge: Fledge) -> None:
    make(tmp_path, {"Cmd": ["nginx"]}, HTTP)
    (tmp_path / "layout/index.json").write_bytes(b"not read")
    for name in ("my app.img", "größer.img", "-.img", '"a".img'):
        done = fledge("build", "--platform", "linux/amd64", "-o", f"./{name}")
        assert done.code == 2
        assert "the plugin cannot be named " in done.err
        assert "Set [manifest] name, or choose another file with -o FILE." in done.err
    assert not list(tmp_path.glob("*.img*"))


@pytest.mark.parametrize(
    ("config", "table", "words"),
    [
        ({"Cmd": ["gone"]}, "", "the artifact has no program gone in PATH="),
        ({"Cmd": ["crlf"]}, "", "cannot run: the first line of /bin/crlf ends with a carriage"),
        ({"Cmd": ["arm"]}, "", "cannot run: /bin/arm is for arm64, not for amd64"),
        ({"Cmd": ["lost"]}, "", "cannot run: /bin/lost needs /bin/python, but /bin/python does"),
        ({"Cmd": ["nginx"], "WorkingDir": "/gone"}, "", "the artifact has no folder /gone"),
        ({"Cmd": ["nginx"]}, "workload.workdir = '/gone'\n", "the artifact has no folder /gone"),
        ({"Cmd": ["nginx"]}, "workload.entrypoint = ['lost']\n", "/bin/lost needs /bin/python"),
    ],
)
@pytest.mark.slow
def test_an_artifact_that_exists_is_checked_as_a_build_is(
    tmp_path: Path, fledge: Fledge, config: dict[str, object], table: str, words: str
) -> None:
    toml = make(tmp_path, config)
    whole = toml.read_text()
    toml.write_text(whole.partition("[manifest]")[0])
    arguments = ("--platform", "linux/amd64")
    assert fledge("build", *arguments, "-o", "a.img").code == 0
    toml.write_text(whole + HTTP + table)
    built = fledge("build", *arguments, "-o", "b.img")
    printed = fledge("manifest", "a.img")
    checked = fledge("check", *arguments)
    assert (printed.code, printed.out) == (2, "")
    assert words in printed.err
    assert built.err.endswith(printed.err)
    assert checked.err.endswith(printed.err)


@pytest.mark.slow
def test_the_provenance_of_an_older_artifact_says_nothing(tmp_path: Path, fledge: Fledge) -> None:
    make(tmp_path, {"Cmd": ["nginx"]}, HTTP + 'version = "1"\n')
    arguments = ("build", "--platform", "linux/amd64", "-o")
    assert fledge(*arguments, "a.img").code == 0
    assert json.loads(fledge("manifest", "a.img").out)["image"] == "oci:layout:1.27"
    with (tmp_path / "a.img").open("ab") as file:
        file.write(bytes(4096))
    assert "image" not in json.loads(fledge("manifest", "a.img").out)


def test_nothing_to_say(tmp_path: Path, fledge: Fledge) -> None:
    project.make_rootfs(tmp_path)
    assert fledge("build", "-o", "a.img").code == 0
    assert not list(tmp_path.glob("*.manifest.json"))
    for command in (("manifest", "a.img"), ("build", "--base-url", "https://example.org")):
        done = fledge(*command)
        assert done.code == 2
        assert "says nothing about a plugin manifest" in done.err
