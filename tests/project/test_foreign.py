"""What people write who come from the original fledge: it works, or is answered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fledge.sources.busybox import DEFAULT_DIGEST, DEFAULT_URL
from tests.support import project
from tests.support.images import image, write_layout
from tests.support.project import Fledge
from tests.support.tars import file, folder, pack

LATEST = """
[agent]
source_strategy = "release"
version = "latest"
"""

BUSYBOX = f"""
[source]
busybox_url = "{DEFAULT_URL}"
busybox_sha256 = "{DEFAULT_DIGEST.hex}"
"""

FILES = {
    "my-init.sh": b"#!/bin/sh\n",
    "caddy": b"#!/bin/sh\n",
    "Dockerfile": b"FROM scratch AS release\n",
    "payload/app/server.py": b"print()\n",
    "payload/static/style.css": b"",
    "certs/ca.pem": b"",
    "target/x86_64-unknown-linux-musl/release/supervisor": b"#!/bin/sh\n",
}


def initramfs(*tables: str) -> str:
    return 'version = "1"\nstrategy = "initramfs"\n' + "".join(tables)


def disk(*tables: str) -> str:
    return 'version = "1"\nstrategy = "oci_rootfs"\n' + "".join((*tables, LATEST))


IMAGE = '[source]\nimage = "postgres:15-alpine"\n'
EXT4 = '[filesystem]\ntype = "ext4"\nsize_buffer_mb = 200\npreallocate = false\n'

DOCKERFILE = """
[source]
dockerfile = "./Dockerfile"
context = "."
target = "release"
build_args = { FOO = "bar" }
"""

SQUASHFS = """
[filesystem]
type = "squashfs"
compression_level = 15
overlay_size = "1G"
"""

VALID = {
    "smallest": initramfs(LATEST, BUSYBOX),
    "no agent and no busybox": initramfs(),
    "default init": initramfs(LATEST, BUSYBOX, '[mappings]\n"./caddy" = "/usr/local/bin/caddy"\n'),
    "busybox without its checksum": initramfs(f'[source]\nbusybox_url = "{DEFAULT_URL}"\n'),
    "checksum of the default busybox": initramfs(
        f'[source]\nbusybox_sha256 = "{DEFAULT_DIGEST.hex}"\n'
    ),
    "own init": initramfs(
        '[init]\npath = "./my-init.sh"\n[mappings]\n"./my-init.sh" = "/init"\n', BUSYBOX
    ),
    "no init": initramfs(
        "[init]\nnone = true\n[mappings]\n"
        '"./target/x86_64-unknown-linux-musl/release/supervisor" = "/init"\n'
    ),
    "certificates": initramfs(LATEST, '[mappings]\n"certs/ca.pem" = "/etc/ssl/certs/ca.pem"\n'),
    "image": disk(IMAGE, EXT4, "[mappings]\n"),
    "Dockerfile": disk(DOCKERFILE, EXT4),
    "Dockerfile in an initramfs": initramfs(LATEST, DOCKERFILE),
    "squashfs": disk(IMAGE, SQUASHFS),
    "folders": disk(
        IMAGE,
        '[mappings]\n"payload/app" = "/opt/app"\n"payload/static/" = "/var/www/static/"\n',
    ),
}


@pytest.mark.parametrize("name", VALID)
def test_what_works(name: str, tmp_path: Path, fledge: Fledge) -> None:
    for path, data in FILES.items():
        project.write(tmp_path, path, data, executable=True)
    project.write(tmp_path, "fledge.toml", VALID[name].encode())
    done = fledge("check")
    assert (done.code, done.out) == (0, "fledge.toml is valid\n"), done.err


@pytest.mark.parametrize(
    ("toml", "answers"),
    [
        (
            disk(IMAGE, '[filesystem]\ncompression_level = 15\noverlay_size = "1G"\n'),
            [
                'compression_level = 15: requires type = "erofs" or "squashfs"; add that',
                'overlay_size = "1G": requires type = "squashfs"; add that, or remove',
            ],
        ),
        (
            disk('[source]\ndockerfile = "my-init.sh"\ntarget = ""\n'),
            ['[source] target = "": remove it; without target, the last stage is built'],
        ),
        (
            initramfs(
                '[init]\npath = "/usr/local/bin/my-init.sh"\n'
                '[mappings]\n"./my-init.sh" = "/usr/local/bin/my-init.sh"\n'
            ),
            ['it is a path in the artifact, and must be one of the project; write path = "./my-'],
        ),
        (
            initramfs('[source]\nbusybox_url = "https://example.org/busybox"\n'),
            ["busybox_sha256 is missing: busybox_url requires it"],
        ),
        (
            initramfs(f'[source]\nbusybox_sha256 = "{"0" * 64}"\n'),
            ["busybox_url is missing: busybox_sha256 requires it"],
        ),
    ],
)
def test_what_is_answered(toml: str, answers: list[str], tmp_path: Path, fledge: Fledge) -> None:
    for path, data in FILES.items():
        project.write(tmp_path, path, data, executable=True)
    project.write(tmp_path, "fledge.toml", toml.encode())
    done = fledge("check")
    assert done.code == 2
    for answer in answers:
        assert answer in done.err
    assert " is unknown" not in done.err


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("serve",), "fledge has no server; run fledge build"),
        (("serve", "--addr", "127.0.0.1:7070"), "fledge has no server; run fledge build"),
        (("build", "--dockerfile", "x"), '--dockerfile: write dockerfile = "FILE" in [source]'),
        (("build", "--build-arg=A=1"), 'write build_args = { NAME = "VALUE" } in [source]'),
        (("build", "--output-initramfs"), 'write strategy = "initramfs" and dockerfile = "FILE"'),
        (("build", "other"), "other is neither a folder nor a .toml file nor a Dockerfile"),
    ],
)
def test_commands_that_are_answered(
    arguments: tuple[str, ...], answer: str, fledge: Fledge
) -> None:
    done = fledge(*arguments)
    assert (done.code, done.out) == (2, "")
    assert answer in done.err


def test_options_before_the_command(tmp_path: Path, fledge: Fledge) -> None:
    project.make(tmp_path)
    for before in ("-v", "--verbose", "-q"):
        assert fledge(before, "build").out == "plugin.cpio.gz\n"


WEBSERVER = """
schema_version = "v1"
name = "webserver"
version = "1.0.0"
runtime = "webserver"
[resources]
cpu_cores = 2
memory_mb = 256
[workload]
entrypoint = "/usr/bin/webserver"
args = ["--config", "/etc/webserver.conf"]
[env]
PORT = "8080"
[network]
mode = "bridged"
[[network.expose]]
port = 8080
protocol = "tcp"
"""


def test_a_manifest_beside_an_initramfs(tmp_path: Path, fledge: Fledge) -> None:
    project.make(tmp_path, project.LOCAL_AGENT, '[mappings]\n"caddy" = "/usr/bin/webserver"\n',
                 files={**project.FILES, **FILES})  # fmt: skip
    project.write(tmp_path, "manifest.toml", WEBSERVER.encode())
    done = fledge("build")
    assert done.code == 0, done.err
    workload = json.loads((tmp_path / "plugin.cpio.gz.manifest.json").read_text())["workload"]
    assert workload == {
        "type": "http",
        "base_url": "http://127.0.0.1:8080",
        "entrypoint": ["/usr/bin/webserver", "--config", "/etc/webserver.conf"],
        "env": {"PORT": "8080"},
    }


def test_a_manifest_without_a_program(tmp_path: Path, fledge: Fledge) -> None:
    """The original's smallest example: an empty entrypoint, and no port."""
    project.make(tmp_path)
    text = WEBSERVER.partition("[workload]")[0] + '[workload]\nentrypoint = ""\n'
    project.write(tmp_path, "manifest.toml", text.encode())
    done = fledge("build")
    assert done.code == 2
    assert "the plugin manifest is not complete: workload: base_url must be a URL" in done.err
    text += 'base_url = "http://127.0.0.1:80"\n'
    project.write(tmp_path, "manifest.toml", text.encode())
    done = fledge("build")
    assert done.code == 2
    assert "[manifest.workload] entrypoint" in done.err


@pytest.mark.slow
def test_a_manifest_beside_a_disk(tmp_path: Path, fledge: Fledge) -> None:
    layer = pack(folder("usr/sbin"), file("usr/sbin/nginx", b"#!/bin/sh\n", mode=0o755),
                 folder("bin"), file("bin/sh", project.program(), mode=0o755))  # fmt: skip
    write_layout(tmp_path / "layout", image(layer), "nginx")
    project.write(tmp_path, "kestrel", project.FILES["kestrel"])
    toml = disk('[source]\nimage = "oci:layout:nginx"\n', EXT4).replace(LATEST, project.LOCAL_AGENT)
    project.write(tmp_path, "fledge.toml", toml.encode())
    text = WEBSERVER.replace("/usr/bin/webserver", "/usr/sbin/nginx").replace("8080", "443")
    project.write(tmp_path, "nginx.toml", text.encode())
    done = fledge("build", "-m", "nginx.toml", "-o", "nginx.img", "--platform", "linux/amd64")
    assert done.code == 0, done.err
    manifest = json.loads((tmp_path / "nginx.img.manifest.json").read_text())
    assert manifest["workload"]["base_url"] == "http://127.0.0.1:443"
    assert manifest["network"]["expose"] == [{"port": 443}]
