"""The plugin manifest: what Volant's schema takes, and what the kernel's command line holds."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from fledge.errors import MalformedError
from fledge.project import manifest
from fledge.project.manifest import WIDEST, WrongKeys, complete, encode, parse, read, settings
from tests.support.plugin_manifest import PUBLISHED, decode

WHOLE: dict[str, Any] = {
    "schema_version": "1.0",
    "name": "nginx",
    "version": "1.27",
    "runtime": "nginx",
    "enabled": True,
    "image": "docker.io/library/nginx:1.27",
    "image_digest": "sha256:" + "a" * 64,
    "openapi": "http://127.0.0.1/openapi.json",
    "labels": {"team": "web"},
    "resources": {"cpu_cores": 2, "memory_mb": 512},
    "workload": {
        "type": "http",
        "base_url": "http://127.0.0.1:80",
        "entrypoint": ["/usr/sbin/nginx", "-g", "daemon off;"],
        "env": {"LANG": "C.UTF-8", "NAME": "größer = besser"},
        "workdir": "/srv",
    },
    "rootfs": {"url": "https://example.org/nginx.img", "checksum": "sha256:" + "b" * 64},
    "disks": [{"name": "data", "source": "/var/data.img", "format": "qcow2", "readonly": True}],
    "health_check": {"endpoint": "/health", "timeout_ms": 500},
    "actions": {"reload": {"method": "POST", "path": "/reload", "timeout_ms": 10}},
    "cloud_init": {"user_data": {"inline": True, "content": "#cloud-config"}},
    "network": {"mode": "bridged", "subnet": "10.0.0.0/24", "auto_assign": True},
    "devices": {"pci_passthrough": ["0000:01:00.0"]},
}


BAD_NAMES = (
    *("my app", " a", "a\t", "a\nb", "a\n", "a\0b", "a\u00a0b", 'a"b', "größer", "\ud800"),
    *("-a", ".a", "..", "a/b", "a?b", "a#b", "a%20b", "a=b"),
)


def edited(path: str, value: object = None) -> dict[str, Any]:
    """Return `WHOLE` with another value at a path; without the key if the value is None."""
    document: dict[str, Any] = json.loads(json.dumps(WHOLE))
    *parents, last = path.split(".")
    at = document
    for name in parents:
        at = at.setdefault(name, {})
    at[last] = value
    if value is None:
        del at[last]
    return document


def test_a_whole_manifest() -> None:
    parsed = parse(WHOLE)
    again = json.loads(manifest.serialize(parsed))
    jsonschema.validate(again, PUBLISHED)
    assert parse(again) == parsed
    assert {key: again[key] for key in WHOLE} == WHOLE


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("name", None, "name is missing"),
        ("name", "", "name: must begin with a letter or digit"),
        ("runtime", None, "runtime is missing"),
        ("nmae", "x", "Volant knows no key nmae"),
        ("enabled", "yes", "enabled: must be true or false, without quotes"),
        ("resources.cpu_cores", 0, "resources.cpu_cores: must be a whole number from 1 to 4096"),
        ("resources.memory_mb", None, "resources: memory_mb is missing"),
        ("resources.cpus", 1, "resources: Volant knows no key cpus"),
        ("workload.type", "tcp", "workload.type: Volant knows no tcp"),
        ("workload.entrypoint", [], "workload.entrypoint: must not be empty"),
        ("workload.entrypoint", "/bin/sh", "workload.entrypoint: must be a list in brackets"),
        ("workload.base_url", None, 'workload: base_url must be a URL, such as "http://127'),
        ("workload", None, "workload is missing"),
        ("workload.env", {"A": 1}, "workload.env.A: must be text in quotes"),
        ("rootfs.format", "ext4", "rootfs.format: Volant knows no ext4"),
        ("rootfs", None, "exactly one of rootfs and initramfs must be there"),
        (
            "initramfs",
            {"url": "/a", "checksum": "sha256:" + "b" * 64},
            "exactly one of rootfs and initramfs must be there",
        ),
        (
            "health_check.timeout_ms",
            -1,
            "health_check.timeout_ms: must be a whole number from 0 to",
        ),
        ("health_check.timeout_ms", None, "health_check: timeout_ms is missing"),
        ("actions.reload.path", None, "actions.reload: path is missing"),
        ("network.mode", "nat", "network.mode: Volant knows no nat"),
        ("cloud_init.seed_mode", "iso", "cloud_init.seed_mode: Volant knows no iso"),
        ("disks", [{"name": "data"}], "disks[0]: source is missing"),
    ],
)
def test_what_the_published_schema_refuses(path: str, value: object, words: str) -> None:
    with pytest.raises(MalformedError) as raised:
        parse(edited(path, value))
    assert str(raised.value).startswith(words)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(edited(path, value), PUBLISHED)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        *(
            (key, name, f"{key}: must begin with a letter or digit and have only letters of ASCII")
            for key in ("name", "runtime")
            for name in BAD_NAMES
        ),
        *(
            ("version", version, "version: must be text on one line")
            for version in ("", " ", "\u00a0", "1\n2", "1\n", "1\x1b[31m", "1\0", "1\x9b")
        ),
        ("rootfs.url", "file:///a.img", "rootfs.url: must be an http or https URL, or an absolute"),
        ("rootfs.url", "", "rootfs.url: must be an http"),
        ("rootfs.checksum", "b" * 63, "rootfs.checksum: must be a SHA-256: sha256: and 64 hex"),
        ("rootfs.checksum", "sha256:" + "b" * 64 + "\n", "rootfs.checksum: must be a SHA-256"),
        ("rootfs.checksum", "md5:" + "b" * 32, "rootfs.checksum: must be a SHA-256"),
        ("resources.cpu_cores", 4097, "resources.cpu_cores: must be at most 4096, as many as KVM"),
        ("resources.cpu_cores", 1 << 64, "resources.cpu_cores: must be at most 4096"),
        ("resources.memory_mb", (1 << 32) + 1, "resources.memory_mb: must be at most 4294967296,"),
        ("resources.memory_mb", 10**30, "resources.memory_mb: must be at most 4294967296,"),
        (
            "health_check.timeout_ms",
            9223372036855,
            "health_check.timeout_ms: must be a whole number from 0 to 9223372036854",
        ),
        (
            "actions.reload.timeout_ms",
            1 << 63,
            "actions.reload.timeout_ms: must be a whole number from 0 to 92233",
        ),
        ("network.auto_assign", None, "network: a subnet with bridged needs a gateway or"),
        ("cloud_init.user_data.inline", None, "cloud_init.user_data: content needs inline"),
    ],
)
def test_what_volant_or_the_kernel_refuses(path: str, value: object, words: str) -> None:
    with pytest.raises(MalformedError) as raised:
        parse(edited(path, value))
    assert str(raised.value).startswith(words)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *(("name", name) for name in ("a", "9", "web", "Web-1.27_b", "acme:web@2+x~y", "a" * 200)),
        *(("version", version) for version in ("1", "1.0 (größer)", " 1 ", "2026-11-01T00:00:00Z")),
        ("resources.cpu_cores", 4096),
        ("resources.memory_mb", 1 << 32),
        ("health_check.timeout_ms", 9223372036854),
    ],
)
def test_what_volant_takes(path: str, value: object) -> None:
    parse(edited(path, value))
    jsonschema.validate(edited(path, value), PUBLISHED)


def test_names_are_words_of_the_command_line() -> None:
    """The agent splits the command line at spaces, and each word at its first ``=``."""
    document = edited("name", "acme:web@2+x~y") | {"runtime": "run-time_1.2"}
    line = manifest.command_line(parse(document), WIDEST)
    parameters = dict(word.partition("=")[::2] for word in line.split())
    assert parameters["volant.plugin"] == document["name"]
    assert parameters["volant.runtime"] == document["runtime"]
    assert '"' not in line
    assert line.isascii()


@pytest.mark.parametrize(
    "document",
    [
        WHOLE | {"$schema": "https://example.org/plugin-manifest-v1.json"},
        edited("rootfs.checksum"),
        edited("rootfs.checksum", ""),
        edited("rootfs.checksum", "b" * 64),
        edited("rootfs.checksum", "sha256:" + "B" * 64),
        WHOLE | {"initramfs": {"url": ""}},
        edited("runtime"),
        edited("schema_version"),
    ],
)
def test_manifests_of_others(document: dict[str, Any]) -> None:
    found = read(json.dumps(document).encode())
    assert (found.name, found.runtime, found.url) == ("nginx", "nginx", WHOLE["rootfs"]["url"])
    has_checksum = document["rootfs"].get("checksum")
    assert (found.digest and found.digest.hex) == ("b" * 64 if has_checksum else None)
    assert "$schema" not in json.loads(manifest.serialize(found))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "it is not JSON"),
        (b"\xff", "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b"[]", "must be a table"),
        (b'{"name": 5}', "name: must be text in quotes"),
        (b'{"name": "a", "version": "1", "rootfs": 5}', "resources is missing"),
    ],
)
def test_what_is_no_manifest(text: bytes, words: str) -> None:
    with pytest.raises(MalformedError) as raised:
        read(text)
    assert str(raised.value).startswith(words)


def test_round_trip_over_the_command_line() -> None:
    parsed = parse(WHOLE)
    line = manifest.command_line(parsed, None)
    assert "volant.rootfs_device=vda volant.rootfs_fstype=ext4" in line
    found = decode(line)
    assert found["labels"] == {
        "team": "web",
        "volant.plugin": "nginx",
        "volant.runtime": "nginx",
    }
    assert found["initramfs"] == {"url": ""}
    assert found["workload"] == WHOLE["workload"]
    again = read(json.dumps(found).encode())
    assert again == parse(WHOLE | {"labels": found["labels"]})
    with pytest.raises((ValueError, EOFError)):
        decode(line[:-5])


def test_what_is_too_long() -> None:
    fits = parse(WHOLE)
    assert manifest.excess(fits) == 0
    noise = {f"VARIABLE_{n}": f"{n * 7919:x}" * 3 for n in range(120)}
    long = parse(edited("workload.env", noise))
    assert manifest.excess(long) == len(manifest.command_line(long, WIDEST)) - 2047 > 0
    assert len(encode(long)) > len(encode(fits))


KNOWN = {
    "name": "app",
    "version": "1",
    "runtime": "app",
    "workload": {"entrypoint": ["/app"], "base_url": "http://127.0.0.1:80", "env": {"A": "1"}},
    "initramfs": {"url": "/plugin.cpio.gz", "checksum": "sha256:" + "c" * 64},
}


def test_settings_of_the_original() -> None:
    found = settings(
        {
            "schema_version": "v1",
            "name": "nginx",
            "version": "1.0.0",
            "runtime": "nginx",
            "resources": {"cpu_cores": 2, "memory_mb": 512},
            "workload": {"entrypoint": "/usr/sbin/nginx", "args": ["-g", "daemon off;"]},
            "env": {"NGINX_WORKER_PROCESSES": "auto"},
            "network": {"mode": "bridged", "expose": [{"port": 80, "protocol": "tcp"}]},
        }
    )
    filled = complete(found, KNOWN)
    assert filled.schema_version == "1.0"
    assert filled.enabled
    assert filled.workload.entrypoint == ["/usr/sbin/nginx", "-g", "daemon off;"]
    assert filled.workload.env == {"A": "1", "NGINX_WORKER_PROCESSES": "auto"}
    assert filled.network
    assert filled.network.expose[0].port == 80


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"url": "ftp://a/b"}, "url: must be an http or https URL, or an absolute path"),
        ({"url": 5}, "url: must be"),
        ({"url": "http://?a"}, "url: must be"),
        ({"rootfs": {"url": "/a"}}, "rootfs: fledge writes this; set url"),
        ({"env": {"": "x"}}, 'env: "" names no variable: a name is not empty, and has no = in it'),
        ({"workload": {"env": {" ": "x"}}}, 'workload.env: " " names no variable'),
        ({"workload": {"env": {"A=B": "x"}}}, 'workload.env: "A=B" names no variable'),
        ({"workload": {"base_url": "http://"}}, "workload: base_url must be a URL"),
        ({"workload": {"base_url": "http://:80"}}, "workload: base_url must be a URL"),
        ({"workload": {"base_url": "http://a:x"}}, "workload: base_url must be a URL"),
        ({"workload": {"base_url": "http://a b"}}, "workload: base_url must be a URL"),
        ({"health_check": {"endpoint": "", "timeout_ms": 1}}, "health_check.endpoint: must be the"),
        (
            {"health_check": {"endpoint": " ", "timeout_ms": 1}},
            "health_check.endpoint: must be the",
        ),
        ({"workload": {"args": ["a"]}}, "workload.args: must be a list, beside an entrypoint"),
        ({"workload": {"entrypoint": "a", "args": "b"}}, "workload.args: must be a list"),
        ({"workload": 5}, "workload: must be a table"),
        ({"env": "A=1"}, "env: must be a table"),
        (
            {"resources": {"memory_mb": "512"}},
            "resources.memory_mb: write 512, a whole number from 1 to 42949",
        ),
    ],
)
def test_settings_that_are_wrong(table: dict[str, Any], words: str) -> None:
    with pytest.raises(MalformedError) as raised:
        settings(table)
    assert str(raised.value).startswith(words)


def test_all_mistakes_are_found_at_once() -> None:
    table = {
        "nmae": "web",
        "enabled": "yes",
        "url": "ftp://a/b",
        "resources": {"cpu_cores": 0, "memory": 512},
        "workload": {"type": "htp", "env": {"": "x", "A": 1}, "args": "x"},
        "disks": [{"name": "a"}, {"name": "b", "source": "/b", "readonly": 1}],
        "network": {"mode": "vsock", "expose": [{"port": 0, "protocol": "sctp"}]},
    }
    with pytest.raises(WrongKeys) as raised:
        settings(table)
    assert {each.keys: str(each) for each in raised.value.found} == {
        ("url",): "url: must be an http or https URL, or an absolute path",
        ("workload", "args"): "workload.args: must be a list, beside an entrypoint",
        ("workload", "env", ""): 'workload.env: "" names no variable: a name is not empty, and has'
        " no = in it",
        ("nmae",): "Volant knows no key nmae: did you mean name?",
        ("enabled",): "enabled: must be true or false, without quotes",
        ("resources", "memory"): "resources: Volant knows no key memory: did you mean memory_mb?",
        ("resources", "cpu_cores"): "resources.cpu_cores: must be a whole number from 1 to 4096",
        ("workload", "type"): 'workload.type: Volant knows no htp: did you mean "http"?',
        ("workload", "env", "A"): "workload.env.A: must be text in quotes",
        ("disks", "0", "source"): "disks[0]: source is missing",
        ("disks", "1", "readonly"): "disks[1].readonly: must be true or false, without quotes",
        ("network", "expose", "0", "port"): "network.expose[0].port: must be a whole number from 1"
        " to 65535",
        ("network", "expose", "0", "protocol"): "network.expose[0].protocol: Volant knows no sctp:"
        ' must be "tcp" or "udp"',
    }


def test_settings_may_be_empty() -> None:
    assert complete(settings({}), KNOWN).resources.memory_mb == 512
    with pytest.raises(MalformedError, match="entrypoint is missing"):
        complete(settings({}), KNOWN | {"workload": {}})
