"""fledge init: what it recognizes, what it writes, and what it refuses."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import tomli
import yaml

import fledge as library
from fledge.oci.manifest import host_platform
from tests.support import project
from tests.support.images import image, write_layout
from tests.support.oci_registry import OciRegistry
from tests.support.project import Fledge
from tests.support.tars import file, pack

WRITTEN = ["fledge.toml", "fledge.schema.json", ".gitignore"]
HTTPD = {"Entrypoint": ["/bin/httpd"], "ExposedPorts": {"53/udp": {}, "8000/tcp": {}}}
LAYER = pack(file("bin/httpd", b"#!/bin/sh\n", mode=0o755))


def config(folder: Path) -> dict[str, Any]:
    return tomli.loads((folder / "fledge.toml").read_text())


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def dynamic(loader: bytes = b"/lib64/ld-linux-x86-64.so.2\0") -> bytes:
    """Return an ELF program that names a loader."""
    header = bytearray(project.program())
    struct.pack_into("<Q", header, 32, 64)
    struct.pack_into("<HHHHHH", header, 52, 64, 56, 1, 0, 0, 0)
    return bytes(header) + struct.pack("<IIQQQQQQ", 3, 4, 120, 0, 0, len(loader), 0, 1) + loader


def program(folder: Path, name: str, data: bytes | None = None) -> None:
    project.write(folder, name, project.program() if data is None else data, executable=True)


def test_a_static_program(fledge: Fledge, tmp_path: Path) -> None:
    program(tmp_path, "target/release/my app")
    done = fledge("init", "target/release/my app", "--offline")
    assert (done.code, done.out.split()) == (0, WRITTEN), done.err
    assert "fledge.toml: an initramfs with target/release/my app, a static program" in done.err
    assert "that my app listens at port 8080 is a guess" in done.err
    assert config(tmp_path) == {
        "version": "1",
        "strategy": "initramfs",
        "mappings": {"target/release/my app": "/usr/bin/my app"},
        "manifest": {
            "name": "my-app",
            "version": "0.1.0",
            "workload": {"entrypoint": ["/usr/bin/my app"], "base_url": "http://127.0.0.1:8080"},
        },
    }
    assert (tmp_path / "fledge.schema.json").read_text() == fledge("schema").out
    ignored = (tmp_path / ".gitignore").read_text().splitlines()
    assert ignored[0] == "*.cpio.gz"
    assert {"*.img", "*.squashfs", "*.provenance.json", "*.key"} < set(ignored)
    assert fledge("check").out == "fledge.toml is valid\n"


def test_a_script(fledge: Fledge, tmp_path: Path) -> None:
    program(tmp_path, "serve", b"#! /bin/sh -e\n")
    assert fledge("init", "./serve").code == 0
    assert config(tmp_path)["mappings"] == {"serve": "/usr/bin/serve"}


def test_a_dockerfile(fledge: Fledge, tmp_path: Path) -> None:
    project.write(tmp_path, "docker/web.Dockerfile", b"FROM scratch\n")
    assert fledge("init", "plugins/web", "docker/web.Dockerfile").code == 0
    found = config(tmp_path / "plugins/web")
    assert found["source"] == {"dockerfile": "../../docker/web.Dockerfile"}
    assert "manifest" not in found, "which ports it has is only known when it is built"
    assert "*.img\n" in (tmp_path / "plugins/web/.gitignore").read_text()
    assert fledge("check", "plugins/web").code == 0


def test_a_name_offline(fledge: Fledge, tmp_path: Path) -> None:
    done = fledge("init", "nginx:alpine", "--offline")
    assert (done.code, done.out.split()) == (0, WRITTEN)
    assert "docker.io/library/nginx:alpine was not looked at, so [manifest] is switched" in done.err
    text = (tmp_path / "fledge.toml").read_text()
    assert config(tmp_path)["source"] == {"image": "nginx:alpine"}
    assert "#[manifest]\n" in text
    assert '#name = "nginx"\n' in text
    assert fledge("check").code == 0


@pytest.mark.parametrize(
    ("tag", "run", "manifest"),
    [
        ("1.27", HTTPD, {"workload": {"base_url": "http://127.0.0.1:8000"}}),
        (
            "latest",
            HTTPD,
            {"version": "0.1.0", "workload": {"base_url": "http://127.0.0.1:8000"}},
        ),
        (
            "latest",
            {**HTTPD, "Labels": {"org.opencontainers.image.version": "2"}},
            {"workload": {"base_url": "http://127.0.0.1:8000"}},
        ),
        ("1", {**HTTPD, "ExposedPorts": {"53/udp": {}}}, None),
        ("1", {"ExposedPorts": {"80/tcp": {}}}, None),
        ("1", {"ExposedPorts": 3}, None),
        ("2", None, None),
    ],
)
def test_an_image_that_can_be_read(
    fledge: Fledge, served: OciRegistry, tmp_path: Path, tag: str, run: Any, manifest: Any
) -> None:
    if run:
        made = image(LAYER, config=run, architecture=host_platform().architecture)
        for blob in made.blobs:
            served.put_blob("team/httpd", blob)
        served.put("team/httpd", json.loads(made.body), tag)
    name = f"{served.host}/team/httpd" + (f":{tag}" if tag != "latest" else "")
    done = fledge("init", name)
    assert done.code == 0, done.err
    found = config(tmp_path)
    assert found["source"] == {"image": name}
    assert found.get("manifest") == (manifest and {"name": "httpd", **manifest})
    assert fledge("check").code == 0


@pytest.mark.slow
def test_a_layout_becomes_a_disk(fledge: Fledge, tmp_path: Path) -> None:
    write_layout(tmp_path / "p" / "layout", image(LAYER, config=HTTPD), "httpd")
    write_layout(tmp_path / "other", image(LAYER, config=HTTPD), "httpd")
    assert fledge("init", "p", "--offline").code == 0
    assert config(tmp_path / "p")["source"] == {"image": "oci:layout"}
    assert fledge("init", "q", "oci:other:httpd").code == 0
    assert config(tmp_path / "q")["source"] == {"image": f"oci:{tmp_path}/other:httpd"}
    project.write(tmp_path, "p/kestrel", project.FILES["kestrel"])
    text = (tmp_path / "p/fledge.toml").read_text()
    project.write(tmp_path, "p/fledge.toml", (text + project.LOCAL_AGENT).encode())
    done = fledge("build", "p", "--platform", "linux/amd64")
    assert done.code == 2, "/bin/sh is missing"
    assert "the entrypoint of the plugin manifest cannot run" in done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["Dockerfile", "Dockerfile.dev", "app"], {"source": {"dockerfile": "Dockerfile"}}),
        (["Containerfile"], {"source": {"dockerfile": "Containerfile"}}),
        (["web.Dockerfile"], {"source": {"dockerfile": "web.Dockerfile"}}),
        (["app"], {"mappings": {"app": "/usr/bin/app"}}),
        (["bin/app", "note"], {"mappings": {"bin/app": "/usr/bin/app"}}),
        (["target/release/app", "lib.so"], {"mappings": {"target/release/app": "/usr/bin/app"}}),
        (
            ["target/x86_64-unknown-linux-musl/release/app"],
            {"mappings": {"target/x86_64-unknown-linux-musl/release/app": "/usr/bin/app"}},
        ),
    ],
)
def test_what_is_in_the_folder(
    fledge: Fledge, tmp_path: Path, files: list[str], found: dict[str, Any]
) -> None:
    for name in files:
        data = {"note": b"text", "lib.so": dynamic()}.get(name, project.program())
        program(tmp_path, name, data)
    done = fledge("init")
    assert done.code == 0, done.err
    assert config(tmp_path).items() >= found.items()


@pytest.mark.parametrize(
    ("name", "data", "code", "words"),
    [
        ("app", dynamic(), 2, "app needs /lib64/ld-linux-x86-64.so.2, and an initramfs has no lib"),
        ("app", dynamic(), 2, "CGO_ENABLED=0"),
        ("app", project.program(183), 2, "app is for arm64, and the busybox that fledge knows is"),
        ("app", project.program()[:40], 4, "app is damaged: it is cut short"),
        (
            "app",
            b"#!/usr/bin/env python3\n",
            2,
            "app needs /usr/bin/env, and an initramfs has only",
        ),
        ("app", b"#!/bin/sh\r\n", 4, "line ends of Windows"),
        ("app", b"#!\n", 4, "names no interpreter"),
        ("app.gz", b"\x1f\x8b", 2, "it is compressed with gzip"),
        ("image.tar", b"\0" * 257 + b"ustar", 2, "write oci-archive:image.tar or docker-archive:"),
        ("old.toml", b"", 2, "fledge init --from-original old.toml"),
        ("a\nb", project.program(), 2, "a\\nb is not printable text in UTF-8"),
    ],
)
def test_a_file_that_no_plugin_is_made_of(
    fledge: Fledge, tmp_path: Path, name: str, data: bytes, code: int, words: str
) -> None:
    program(tmp_path, name, data)
    before = snapshot(tmp_path)
    done = fledge("init", "new", name)
    assert (done.code, done.out) == (code, "")
    assert words in done.err
    assert snapshot(tmp_path) == before, "the new folder is gone, too"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "has no Dockerfile, no OCI layout and no static program to make a plugin of"),
        (("target",), "An image called target needs its tag: fledge init target:latest"),
        (("new", "target"), "An image called target needs its tag: target:latest."),
        (("./nope",), "./nope: no such file"),
        (("target/nope",), "target/nope: no such file"),
        (("Dockerfile",), "Dockerfile: no such file"),
        (("UPPER",), "'UPPER' must be in lower case"),
        (("dir:x",), "dir: is a transport of other tools"),
        (("a", "b", "c"), "there are too many arguments: fledge init [[DIR] WHAT]"),
        (("--from-original", "x", "y"), "--from-original FILE needs no DIR and no WHAT"),
        (("--from-original", "x"), "x: no such file"),
        (("fifo",), "fifo could not be read: it is a fifo, not a regular file"),
    ],
)
def test_what_is_not_there(
    fledge: Fledge, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "target").mkdir()
    os.mkfifo(tmp_path / "fifo")
    done = fledge("init", *arguments, "--offline")
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert sorted(os.listdir(tmp_path)) == ["fifo", "target"]


def test_a_folder_that_is_not_utf8(fledge: Fledge, tmp_path: Path) -> None:
    folder = os.fsdecode(b"\xff")
    program(tmp_path / folder, "app")
    library.init("app", tmp_path / folder, session=library.Session.default(offline=True))
    (tmp_path / ".git").mkdir()
    refused = fledge("init", folder, f"{folder}/app")
    assert (refused.code, refused.out) == (2, "")
    (tmp_path / folder / "fledge.toml").unlink()
    refused = fledge("init", folder, "--ci", "github")
    assert (refused.code, refused.out) == (2, "")
    assert "a recipe cannot name the folder \\udcff" in refused.err
    (tmp_path / "link").symlink_to(folder)
    refused = fledge("init", ".", "link/app")
    assert (refused.code, refused.out) == (2, "")
    assert "fledge.toml cannot name link/app in UTF-8" in refused.err


def test_several_candidates(fledge: Fledge, tmp_path: Path) -> None:
    program(tmp_path, "a")
    program(tmp_path, "bin/b")
    done = fledge("init")
    assert done.code == 2
    assert f"{Path()} has several: a, bin/b\n  Name the one" in done.err


@pytest.mark.parametrize(
    ("existing", "ci"),
    [
        ("fledge.toml", ()),
        (".github/workflows/fledge.yml", ("--ci", "github")),
        (".gitlab-ci.yml", ("--ci", "gitlab")),
    ],
)
def test_nothing_is_overwritten(
    fledge: Fledge, tmp_path: Path, existing: str, ci: tuple[str, ...]
) -> None:
    program(tmp_path, "app")
    project.write(tmp_path, existing, b"mine\n")
    before = snapshot(tmp_path)
    done = fledge("init", "app", *ci)
    assert (done.code, done.out) == (2, "")
    assert f"{existing} exists, and nothing is overwritten" in done.err
    (tmp_path / existing).unlink()
    (tmp_path / existing).symlink_to("nowhere")
    assert fledge("init", "app", *ci).code == 2
    (tmp_path / existing).unlink()
    project.write(tmp_path, existing, b"mine\n")
    assert snapshot(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"/target", b"/target\n*.cpio.gz\n"),
        (b"# mine\r\n*.cpio.gz\r\n", b"# mine\r\n*.cpio.gz\r\n*.cpio.zst\n"),
        (b"\xff\n", b"\xff\n*.cpio.gz\n"),
    ],
)
def test_lines_are_added_to_gitignore(
    fledge: Fledge, tmp_path: Path, before: bytes, after: bytes
) -> None:
    program(tmp_path, "app")
    project.write(tmp_path, ".gitignore", before)
    assert fledge("init", "app").out.split() == WRITTEN
    added = (tmp_path / ".gitignore").read_bytes()
    assert added.startswith(after)
    (tmp_path / "fledge.toml").unlink()
    assert fledge("init", "app").out.split() == ["fledge.toml"], "nothing is missing"
    assert (tmp_path / ".gitignore").read_bytes() == added


@pytest.mark.parametrize("size", [0, 1 << 21])
def test_a_failure_leaves_nothing(fledge: Fledge, tmp_path: Path, size: int) -> None:
    program(tmp_path, "app")
    if size:
        project.write(tmp_path, ".gitignore", b"\n" * size)
    else:
        (tmp_path / ".gitignore").mkdir()
    before = snapshot(tmp_path)
    assert fledge("init", "app").code in {1, 2}
    assert snapshot(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("app",), ("new", "app"), ("--from-original", "old.toml")])
def test_a_failure_in_the_middle_leaves_nothing(
    fledge: Fledge, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    program(tmp_path, "app")
    project.write(tmp_path, "old.toml", b'version = "1"\nstrategy = "initramfs"\n')
    project.write(tmp_path, ".github", b"no folder")
    (tmp_path / ".git").mkdir()
    before = snapshot(tmp_path)
    done = fledge("init", *arguments, "--ci", "github")
    assert (done.code, done.out) == (5, "")
    assert ".github/workflows could not be made: not a directory" in done.err
    assert snapshot(tmp_path) == before


def test_a_manifest_beside_it_is_enough(fledge: Fledge, tmp_path: Path) -> None:
    program(tmp_path, "app")
    text = 'version = "1"\nworkload = {base_url = "http://127.0.0.1:1", entrypoint = ["/x"]}\n'
    project.write(tmp_path, "manifest.toml", text.encode())
    assert fledge("init", "app").code == 0
    assert "manifest" not in (tmp_path / "fledge.toml").read_text().lower()
    assert fledge("check").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("ci", ["github", "gitlab"])
@pytest.mark.parametrize("what", ["app", "Dockerfile"])
def test_a_recipe_in_a_repository(fledge: Fledge, tmp_path: Path, ci: str, what: str) -> None:
    folder = tmp_path / "plugins/it's a web"
    program(folder, what, project.program() if what == "app" else b"FROM scratch\n")
    (tmp_path / ".git").mkdir()
    done = fledge("init", folder, "--ci", ci)
    assert done.code == 0, done.err
    assert "next: fledge lock, and commit fledge.lock" in done.err
    path = {"github": ".github/workflows/fledge-it's a web.yml", "gitlab": ".gitlab-ci.yml"}[ci]
    text = (tmp_path / path).read_text()
    found = yaml.safe_load(text)
    artifact = "plugin.cpio.gz" if what == "app" else "'./it'\"'\"'s a web.img'"
    build = f"fledge build --locked -o {artifact if what == 'Dockerfile' else './' + artifact}"
    if ci == "github":
        job = found["jobs"]["plugin"]
        assert job["defaults"]["run"]["working-directory"] == "plugins/it's a web"
        commands = [step["run"] for step in job["steps"] if "run" in step]
        assert "hashFiles('plugins/it''s a web/fledge.lock')" in text
    else:
        commands = found["plugin"]["script"]
        assert "cd 'plugins/it'\"'\"'s a web'" in commands
        assert ("cache" in found["plugin"]) == (what == "app")
    assert build in commands
    assert "pip install fledge-volant" in commands
    assert ("fledge lock" in commands) == (what == "Dockerfile")


@pytest.mark.slow
def test_from_python(tmp_path: Path) -> None:
    program(tmp_path, "app")
    written = library.init(str(tmp_path / "app"), tmp_path / "new", ci="gitlab")
    assert [path.name for path in written] == [*WRITTEN[:2], ".gitlab-ci.yml", ".gitignore"]
    assert all(path.is_file() for path in written)
    old = 'version = "1"\nstrategy = "initramfs"\nnope = 1\n'
    original = project.write(tmp_path, "old/fledge.toml", old.encode())
    assert library.migrate(original)[0].read_text() == old
    assert library.check(original).strategy == "initramfs"


OLD = b'version = "1"\nstrategy = "initramfs"\n[resources]\nmemory = 1 # MiB\n'
NEW = b'version = "1"\nstrategy = "initramfs"\n# [resources]\n# memory = 1 # MiB\n'


def test_an_original_in_place(fledge: Fledge, tmp_path: Path) -> None:
    path = project.write(tmp_path, "fledge.toml", OLD)
    done = fledge("init", "--from-original", "fledge.toml")
    assert done.code == 0, done.err
    names = ["fledge.original.toml", "fledge.schema.json", "fledge.toml", ".gitignore"]
    assert done.out.split() == names
    assert "fledge.toml:3: [resources] becomes a comment: the original passes over it" in done.err
    assert path.read_bytes() == NEW
    assert (tmp_path / "fledge.original.toml").read_bytes() == OLD
    assert fledge("check").code == 0
    again = fledge("init", "--from-original", path)
    assert (again.code, again.out) == (0, "")
    assert "needs no change" in again.err
    path.write_bytes(OLD)
    refused = fledge("init", "--from-original", path)
    assert "fledge.original.toml exists, and nothing is overwritten" in refused.err
    assert path.read_bytes() == OLD


def test_an_original_of_another_name(fledge: Fledge, tmp_path: Path) -> None:
    project.write(tmp_path, "p/old.toml", b"\xef\xbb\xbf" + OLD)
    done = fledge("init", "--from-original", "p/old.toml", "--ci", "github")
    assert done.code == 0, done.err
    assert (tmp_path / "p/fledge.toml").read_bytes() == NEW
    assert fledge("init", "--from-original", "p/old.toml").code == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'version = "1"\nstrategy =\n', "old.toml:2"),
        (b'version = "2"\nstrategy = "initramfs"\n', 'version = "2": this version of fledge'),
        (OLD + b'[mappings]\n"app" = "/app"\n', "old.toml: [mappings]"),
        (b'version = "1"\nstrategy = "initramfs"\nresources = {}\ninit = {x = 1}\n', "by hand"),
    ],
)
def test_an_original_that_stays_wrong(
    fledge: Fledge, tmp_path: Path, text: bytes, words: str
) -> None:
    project.write(tmp_path, "old.toml", text)
    before = snapshot(tmp_path)
    done = fledge("init", "--from-original", "old.toml")
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert snapshot(tmp_path) == before
