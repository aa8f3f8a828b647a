"""fledge.lock: what it says, what it pins, and what a build does where it does not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import daemons
import project
import pytest
import registry
from httpd import Server, content, status
from layouts import make_layout
from project import Fledge
from pythons import nobody
from tars import file, pack
from test_agent import KESTREL, KESTREL_ARM64, github, publish

from fledge.project import lock
from fledge.project.lock import AgentPin, BusyboxPin, ImagePin, Lock, Named

__all__ = ["github"]

AMD64 = "--platform", "linux/amd64"
BOTH = *AMD64, "--platform", "linux/arm64"
HTTP_AGENT = '[agent]\nsource_strategy = "http"\nurl = "{}"\n'
RELEASE_AGENT = '[agent]\nversion = "{}"\n'

OLD = registry.image(pack(file("a", b"old")))
NEW = registry.image(pack(file("a", b"new")))
ARM = registry.image(pack(file("a", b"arm")), architecture="arm64")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


BUSYBOX = project.busybox()


def image_project(folder: Path, image: str, *tables: str) -> Path:
    """An initramfs with an image below it, for no tool of the host is needed for one."""
    source = project.source((folder / "busybox").as_uri(), BUSYBOX) + f'image = "{image}"\n'
    return project.make(folder, *(tables or (project.LOCAL_AGENT,)), source)


def write_layout(folder: Path, top: registry.Manifest) -> None:
    """An OCI layout whose one image is a manifest, or an index of them."""
    shutil.rmtree(folder, ignore_errors=True)
    pending = [top]
    while pending:
        manifest = pending.pop()
        pending += manifest.children
        for blob in (manifest.body, *manifest.blobs):
            project.write(folder, f"blobs/sha256/{sha256(blob)}", blob)
    project.write(folder, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
    index = {"manifests": [registry.descriptor(top.media_type, top.body)]}
    project.write(folder, "index.json", json.dumps(index).encode())


def artifact(folder: Path) -> str:
    return sha256((folder / "plugin.cpio.gz").read_bytes())


def built(fledge: Fledge, *options: str) -> dict[str, Any]:
    """Digest and inputs of what a build makes."""
    done = fledge("build", "--json", *AMD64, *options)
    assert done.code == 0, done.err
    answer = json.loads(done.out)
    assert isinstance(answer, dict)
    return answer


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


def empty_the_cache() -> None:
    shutil.rmtree(os.environ["FLEDGE_CACHE_DIR"], ignore_errors=True)


# What it says


LOCK = Lock(
    Named(
        "docker.io/library/nginx:alpine",
        {
            "linux/arm64": ImagePin(None, "c" * 64, ()),
            "linux/amd64": ImagePin("a" * 64, "b" * 64, ("1" * 64, "0" * 64)),
        },
    ),
    Named("latest", {"amd64": AgentPin("v1.2.3", "https://example.org/kestrel", "d" * 64)}),
    BusyboxPin("https://example.org/busybox", "e" * 64),
)
TEXT = f"""\
# What the names and URLs in fledge.toml stand for, written by `fledge lock`.
# Keep it beside that file, in version control.

version = "1"

[image]
name = "docker.io/library/nginx:alpine"

[image.platforms."linux/amd64"]
manifest = "sha256:{"a" * 64}"
config = "sha256:{"b" * 64}"
diff_ids = [
    "sha256:{"1" * 64}",
    "sha256:{"0" * 64}",
]

[image.platforms."linux/arm64"]
config = "sha256:{"c" * 64}"
diff_ids = []

[agent]
name = "latest"

[agent.architectures.amd64]
version = "v1.2.3"
url = "https://example.org/kestrel"
sha256 = "{"d" * 64}"

[busybox]
url = "https://example.org/busybox"
sha256 = "{"e" * 64}"
"""


def test_text(tmp_path: Path) -> None:
    path = tmp_path / "fledge.lock"
    lock.write(LOCK, path, tmp_path / "fledge.toml")
    assert path.read_text() == TEXT
    assert lock.load(path) == LOCK
    assert lock.load(tmp_path / "none.lock") is None


def test_differences() -> None:
    new = Lock(None, LOCK.agent, BusyboxPin("https://example.org/busybox", "f" * 64))
    lines = lock.differences(LOCK, new)
    assert f"busybox sha256: {'f' * 64}, was {'e' * 64}" in lines
    assert "image name: nothing, was docker.io/library/nginx:alpine" in lines
    assert not any("agent" in line for line in lines)
    assert f"image platforms linux/amd64 diff_ids 1: nothing, was sha256:{'0' * 64}" in lines
    assert lock.differences(LOCK, LOCK) == []


@pytest.mark.parametrize(
    ("config", "path"),
    [("a/fledge.toml", "a/fledge.lock"), ("x.conf", "x.conf.lock"), ("x.lock", "x.lock.lock")],
)
def test_where_it_is(config: str, path: str) -> None:
    assert lock.path_beside(Path(config)) == Path(path)


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ('version = "1"', 'version = "2"', 'version = "2": this fledge reads version = "1"'),
        ('version = "1"', "", "version is missing"),
        ('version = "1"', 'version = "1"\nmore = 1', "more is unknown"),
        ('name = "latest"', "", "[agent] name is missing"),
        ('name = "latest"', "name = 1", "[agent] name = 1: must be text"),
        ('"linux/amd64"', '"windows/amd64"', '[image.platforms] "windows/amd64" = {'),
        ('"linux/amd64"', '"linux/x86_64"', "the key must be a platform"),
        ("architectures.amd64", 'architectures."../x"', "the key must be an architecture"),
        ("sha256:" + "a" * 64, "sha512:aa", '[image.platforms."linux/amd64"] manifest = '),
        ("sha256:" + "b" * 64, "b" * 64, '[image.platforms."linux/amd64"] config = '),
        ("sha256:" + "1" * 64, "../../etc/passwd", '[image.platforms."linux/amd64"] diff_ids = ['),
        ("diff_ids = []", "diff_ids = [1]", '[image.platforms."linux/arm64"] diff_ids = [1]'),
        ("diff_ids = []", "", '[image.platforms."linux/arm64"] diff_ids is missing'),
        ("https://example.org/kestrel", "javascript:x", "[agent.architectures.amd64] url = "),
        ("d" * 64, "d" * 63, "[agent.architectures.amd64] sha256 = "),
        (f'sha256 = "{"e" * 64}"', "", "[busybox] sha256 is missing"),
        ("[busybox]", "[busybox", "TOML syntax"),
        ("[busybox]", "<<<<<<< HEAD\n[busybox]", "TOML syntax"),
        ("[agent]", "[agent]\nname = 'x'\n[agent]", "TOML syntax"),
    ],
)
def test_damaged(fledge: Fledge, tmp_path: Path, before: str, after: str, problem: str) -> None:
    project.make(tmp_path)
    assert before in TEXT
    (tmp_path / "fledge.lock").write_text(TEXT.replace(before, after, 1))
    for command in (["build"], ["build", "--locked"], ["lock"], ["lock", "--check"], ["fetch"]):
        done = fledge(*command)
        assert done.code == 2
        assert problem in done.err
        assert "delete it and run `fledge lock`" in done.err
    assert not (tmp_path / "plugin.cpio.gz").exists()


def test_every_problem_at_once(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path)
    text = TEXT.replace("sha256:", "md5:").replace("https:", "\\u001b[31m:").replace("latest", " ")
    (tmp_path / "fledge.lock").write_text(text)
    done = fledge("build")
    assert done.code == 2
    assert "fledge.lock has 7 problems" in done.err
    assert "\x1b[31m:" not in done.err


@pytest.mark.parametrize("data", [b"\xff", b"#" * (1 << 20) + b"\n", b"a." * 5000 + b"b = 1"])
def test_no_text_at_all(fledge: Fledge, tmp_path: Path, data: bytes) -> None:
    project.make(tmp_path)
    (tmp_path / "fledge.lock").write_bytes(data)
    assert fledge("build").code == 2


def test_no_output_goes_over_it(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path)
    fledge("lock")
    before = (tmp_path / "fledge.lock").read_bytes()
    assert fledge("build", "-o", "fledge.lock").code == 2
    assert (tmp_path / "fledge.lock").read_bytes() == before


# Writing it


def test_lock_build_check(fledge: Fledge, github: Server, tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", OLD)
    image_project(tmp_path, "oci:layout", RELEASE_AGENT.format("latest"))
    publish(github, {"kestrel": KESTREL})
    done = fledge("lock", *AMD64)
    assert (done.code, done.out) == (0, "fledge.lock\n")
    written = lock.load(tmp_path / "fledge.lock")
    assert written == Lock(
        Named(
            "oci:layout",
            {
                "linux/amd64": ImagePin(
                    OLD.sha256, sha256(OLD.blobs[0]), (sha256(pack(file("a", b"old"))),)
                )
            },
        ),
        Named(
            "latest",
            {"amd64": AgentPin("v1.2.3", github.url("/download/v1.2.3/kestrel"), sha256(KESTREL))},
        ),
        BusyboxPin((tmp_path / "busybox").as_uri(), sha256(BUSYBOX)),
    )
    assert fledge("lock", "--check", *AMD64).code == 0
    done = fledge("build", "--locked", *AMD64)
    assert done.code == 0
    assert "not pin" not in done.err


def test_lock_is_stable(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path)
    fledge("lock")
    before = (tmp_path / "fledge.lock").stat()
    done = fledge("lock")
    assert done.code == 0
    assert (tmp_path / "fledge.lock").stat() == before


def test_check_tells_what_moved(fledge: Fledge, github: Server, tmp_path: Path) -> None:
    project.make(tmp_path, RELEASE_AGENT.format("latest"))
    publish(github, {"kestrel": KESTREL})
    done = fledge("lock", "--check")
    assert done.code == 1
    assert "fledge.lock does not exist" in done.err
    assert not (tmp_path / "fledge.lock").exists()
    fledge("lock")
    before = (tmp_path / "fledge.lock").read_bytes()
    newer = KESTREL + b" newer"
    publish(github, {"kestrel": newer}, tag="v2")
    done = fledge("lock", "--check")
    assert done.code == 1
    assert "agent architectures amd64 version: v2, was v1.2.3" in done.err
    assert f"amd64 sha256: {sha256(newer)}, was {sha256(KESTREL)}" in done.err
    assert "fledge lock" in done.err
    assert (tmp_path / "fledge.lock").read_bytes() == before
    done = fledge("lock")
    assert "version: v2, was v1.2.3" in done.err
    assert fledge("lock", "--check").code == 0


def test_other_platforms_stay(fledge: Fledge, github: Server, tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", registry.index(OLD, ARM))
    text = 'version = "1"\nstrategy = "oci_rootfs"\nsource.image = "oci:layout"\n'
    project.write(tmp_path, "fledge.toml", text.encode())
    publish(github, {"kestrel": KESTREL, "kestrel-linux-arm64": KESTREL_ARM64})
    assert fledge("lock", *BOTH).code == 0
    both = lock.load(tmp_path / "fledge.lock")
    assert both
    assert both.image
    assert both.agent
    assert list(both.image.pins) == ["linux/amd64", "linux/arm64"]
    assert both.agent.pins["arm64"].sha256 == sha256(KESTREL_ARM64)
    assert both.busybox is None
    write_layout(tmp_path / "layout", registry.index(NEW, ARM))
    publish(github, {"kestrel": KESTREL, "kestrel-linux-arm64": KESTREL_ARM64}, tag="v2")
    assert fledge("lock", *AMD64).code == 0
    after = lock.load(tmp_path / "fledge.lock")
    assert after
    assert after.image
    assert after.agent
    assert after.image.pins["linux/amd64"].manifest == NEW.sha256
    assert after.image.pins["linux/arm64"] == both.image.pins["linux/arm64"]
    assert [pin.version for pin in after.agent.pins.values()] == ["v2", "v1.2.3"]


def test_pins_of_another_name_go(fledge: Fledge, tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", registry.index(OLD, ARM))
    shutil.copytree(tmp_path / "layout", tmp_path / "copy")
    text = 'version = "1"\nstrategy = "oci_rootfs"\nsource.image = "oci:{}"\n' + project.LOCAL_AGENT
    project.write(tmp_path, "kestrel", b"#!")
    for name, platforms in (("layout", BOTH), ("copy", AMD64)):
        project.write(tmp_path, "fledge.toml", text.format(name).encode())
        assert fledge("lock", *platforms).code == 0
    written = lock.load(tmp_path / "fledge.lock")
    assert written
    assert written.agent is None
    assert written.image
    assert written.image.name == "oci:copy"
    assert list(written.image.pins) == ["linux/amd64"]


def test_a_failed_lock_leaves_the_old_one(fledge: Fledge, github: Server, tmp_path: Path) -> None:
    project.make(tmp_path, RELEASE_AGENT.format("latest"))
    publish(github, {"kestrel": KESTREL})
    fledge("lock")
    before = (tmp_path / "fledge.lock").read_bytes()
    github.answers.clear()
    assert fledge("lock").code == 3
    assert (tmp_path / "fledge.lock").read_bytes() == before


@pytest.mark.parametrize("tag", ["v1\u001b[31m", "v1\0", " ", "", "\ud800"])
def test_hostile_release_server(fledge: Fledge, github: Server, tmp_path: Path, tag: str) -> None:
    project.make(tmp_path, RELEASE_AGENT.format("latest"))
    url = github.url("/kestrel")
    github.answers["/kestrel"] = content(KESTREL)
    answer = {"tag_name": tag, "assets": [{"name": "kestrel", "browser_download_url": url}]}
    path = "/repos/volantvm/volant/releases/latest"
    github.answers[path] = status(200, json.dumps(answer).encode())
    assert fledge("lock").code == 4
    assert not (tmp_path / "fledge.lock").exists()


@pytest.mark.parametrize(
    "name", ["a b", 'a"b\\', "\x7f", "ü\u2028\ufeff", "'''", '\t"""\r\n', "[image]", "#"]
)
def test_any_name_comes_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / "fledge.lock"
    odd = Lock(Named(name, {}), Named(name, {}))
    lock.write(odd, path, Path("x\ny.toml"))
    assert lock.load(path) == odd


def test_no_place_for_a_lock(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path)
    (tmp_path / "fledge.lock").mkdir()
    done = fledge("lock")
    assert done.code == 2
    assert "is a directory" in done.err


def test_the_cache_does_not_hide_where_the_agent_is(
    fledge: Fledge, github: Server, tmp_path: Path
) -> None:
    """With a checksum a build may take the agent from the cache without asking the API."""
    checksum = f'checksum = "{sha256(KESTREL)}"\n'
    project.make(tmp_path, RELEASE_AGENT.format("v1.2.3") + checksum)
    publish(github, {"kestrel": KESTREL})
    fledge("build")
    fledge("lock")
    written = lock.load(tmp_path / "fledge.lock")
    assert written
    assert written.agent
    assert written.agent.pins["amd64"].url == github.url("/download/v1.2.3/kestrel")


# Building with it


def test_release_with_other_bytes(fledge: Fledge, github: Server, tmp_path: Path) -> None:
    project.make(tmp_path, RELEASE_AGENT.format("v1.2.3"))
    publish(github, {"kestrel": KESTREL})
    fledge("lock")
    other = KESTREL + b" with a backdoor"
    publish(github, {"kestrel": other})
    assert fledge("build", "--locked").code == 0, "the right bytes are in the cache"
    empty_the_cache()
    for options in ((), ("--locked",)):
        done = fledge("build", *options, "-o", "x.gz")
        assert done.code == 4
        assert f"the lock pins the agent with sha256 {sha256(KESTREL)}" in done.err
        assert f"{github.url('/download/v1.2.3/kestrel')} has sha256 {sha256(other)}" in done.err
    assert not (tmp_path / "x.gz").exists()


def test_release_is_gone(fledge: Fledge, github: Server, tmp_path: Path) -> None:
    project.make(tmp_path, RELEASE_AGENT.format("v1.2.3"))
    publish(github, {"kestrel": KESTREL})
    fledge("lock")
    empty_the_cache()
    github.answers["/download/v1.2.3/kestrel"] = status(404)
    done = fledge("build", "--locked")
    assert done.code == 3
    assert sha256(KESTREL) in done.err
    assert "404" in done.err


def test_latest_does_not_move_with_a_lock(fledge: Fledge, github: Server, tmp_path: Path) -> None:
    project.make(tmp_path, RELEASE_AGENT.format("latest"))
    publish(github, {"kestrel": KESTREL})
    fledge("lock")
    fledge("build")
    before = artifact(tmp_path)
    publish(github, {"kestrel": KESTREL + b" newer"}, tag="v2")
    empty_the_cache()
    done = fledge("build")
    assert "v1.2.3" in done.err
    assert artifact(tmp_path) == before
    (tmp_path / "fledge.lock").unlink()
    assert "v2" in fledge("build").err
    assert artifact(tmp_path) != before


def test_image_by_file_that_has_changed(fledge: Fledge, tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", OLD)
    image_project(tmp_path, "oci:layout")
    fledge("lock", *AMD64)
    write_layout(tmp_path / "layout", NEW)
    empty_the_cache()
    done = fledge("build", "--locked", *AMD64)
    assert done.code == 4
    assert f"with config sha256:{sha256(OLD.blobs[0])}" in done.err
    assert f"has config sha256:{sha256(NEW.blobs[0])}" in done.err


def test_one_lock_for_every_way_an_image_comes(
    fledge: Fledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written by other tools, the same image has another manifest but the same config."""
    write_layout(tmp_path / "layout", OLD)
    image_project(tmp_path, "oci:layout")
    fledge("lock", *AMD64)
    fledge("build", *AMD64)
    before = artifact(tmp_path)
    plain = json.loads(OLD.body)
    tar = pack(file("a", b"old"))
    plain["layers"] = [registry.descriptor(f"{registry.OCI}.layer.v1.tar", tar)]
    body = json.dumps(plain).encode()
    write_layout(tmp_path / "layout", registry.Manifest(OLD.media_type, body, (OLD.blobs[0], tar)))
    empty_the_cache()
    assert fledge("build", "--locked", *AMD64).code == 0
    assert artifact(tmp_path) == before


def test_the_cache_is_enough_for_an_image(fledge: Fledge, tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", OLD)
    image_project(tmp_path, "oci:layout")
    fledge("lock", *AMD64)
    fledge("build", *AMD64)
    before = artifact(tmp_path)
    empty_the_cache()
    assert fledge("fetch", *AMD64).code == 0
    shutil.rmtree(tmp_path / "layout")
    done = fledge("build", "--locked", "--offline", *AMD64)
    assert done.code == 0
    assert artifact(tmp_path) == before
    assert fledge("build", *AMD64).code == 0, "nor does a build ask that may"


def test_inputs_are_told_the_same_with_a_lock(
    fledge: Fledge, github: Server, tmp_path: Path
) -> None:
    write_layout(tmp_path / "layout", registry.index(OLD, ARM))
    publish(github, {"kestrel": KESTREL})
    image_project(tmp_path, "oci:layout", RELEASE_AGENT.format("latest"))
    without = built(fledge)
    fledge("lock", *AMD64)
    assert built(fledge, "--locked", "--offline") == without
    empty_the_cache()
    assert built(fledge, "--locked") == without


def test_lock_that_contradicts_itself(fledge: Fledge, tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", OLD)
    image_project(tmp_path, "oci:layout")
    fledge("lock", *AMD64)
    path = tmp_path / "fledge.lock"
    path.write_text(path.read_text().replace(sha256(pack(file("a", b"old"))), "0" * 64))
    done = fledge("build", *AMD64)
    assert done.code == 2
    assert "other diff_ids than its config" in done.err


def test_another_name_than_the_lock_has(fledge: Fledge, server: Server, tmp_path: Path) -> None:
    for name in ("one", "two"):
        server.answers[f"/{name}"] = content(KESTREL)
    project.make(tmp_path, HTTP_AGENT.format(server.url("/one")))
    fledge("lock")
    project.make(tmp_path, HTTP_AGENT.format(server.url("/two")))
    done = fledge("build", "--locked")
    assert done.code == 2
    told = f"pins the agent {server.url('/one')}, but fledge.toml names {server.url('/two')}"
    assert told in done.err
    assert "Run `fledge lock`" in done.err
    done = fledge("build")
    assert done.code == 0
    assert told in done.err


def test_another_busybox_than_the_lock_has(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path)
    fledge("lock")
    other = project.busybox(b"cat", b"ls", b"sh")
    project.make(tmp_path, busybox_binary=other)
    done = fledge("build", "--locked")
    assert done.code == 2
    assert sha256(BUSYBOX) in done.err
    assert sha256(other) in done.err
    assert fledge("build").code == 0


def test_another_checksum_than_the_lock_has(fledge: Fledge, server: Server, tmp_path: Path) -> None:
    server.answers["/kestrel"] = content(KESTREL)
    agent = HTTP_AGENT.format(server.url("/kestrel"))
    project.make(tmp_path, agent)
    fledge("lock")
    project.make(tmp_path, agent + f'checksum = "{"0" * 64}"\n')
    done = fledge("build", "--locked")
    assert done.code == 2
    assert sha256(KESTREL) in done.err
    assert "0" * 64 in done.err


def test_what_the_lock_does_not_pin(fledge: Fledge, server: Server, tmp_path: Path) -> None:
    server.answers["/kestrel"] = content(KESTREL)
    write_layout(tmp_path / "layout", registry.index(OLD, ARM))
    project.make(tmp_path)
    fledge("lock")
    image_project(tmp_path, "oci:layout", HTTP_AGENT.format(server.url("/kestrel")))
    done = fledge("build", *AMD64)
    assert done.code == 0
    assert "fledge.lock does not pin the image oci:layout" in done.err
    assert "fledge.lock does not pin the agent http://" in done.err
    assert fledge("build", "--locked", *AMD64).code == 2
    fledge("lock", *AMD64)
    assert fledge("build", "--locked", *AMD64).code == 0
    done = fledge("build", "--locked", "--platform", "linux/arm64")
    assert done.code == 2
    assert "pins the image oci:layout only for linux/amd64, not for linux/arm64" in done.err


def test_locked_without_a_lock(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path)
    for command in (["build", "--locked"], ["fetch"]):
        done = fledge(*command)
        assert done.code == 2
        assert "there is no fledge.lock" in done.err
    assert "lock" not in fledge("build").err


def test_fetch_then_no_network(fledge: Fledge, tmp_path: Path) -> None:
    binary = project.busybox(b"cat", b"ls", b"sh")
    with Server() as server:
        server.answers["/kestrel"] = content(KESTREL)
        server.answers["/busybox"] = content(binary)
        agent = HTTP_AGENT.format(server.url("/kestrel"))
        project.make(tmp_path, agent, project.source(server.url("/busybox"), binary))
        fledge("lock")
        empty_the_cache()
        assert fledge("fetch").code == 0
        asked = len(server.seen)
        assert fledge("build", "--locked").code == 0
        assert len(server.seen) == asked, "a full cache needs no server"
    assert fledge("build", "--locked", "--offline").code == 0


# With real registries and daemons


@pytest.mark.real
def test_moved_tag(fledge: Fledge, tmp_path: Path) -> None:
    with registry.serve(tmp_path / "storage") as host:
        registry.push(host, "team/app", OLD, "v1")
        image_project(tmp_path, f"docker://{host}/team/app:v1")
        before = built(fledge)
        assert fledge("lock", *AMD64).code == 0
        assert built(fledge) == before
        registry.push(host, "team/app", NEW, "v1")
        empty_the_cache()
        assert built(fledge, "--locked") == before
        done = fledge("lock", "--check", *AMD64)
        assert done.code == 1
        assert f"manifest: sha256:{NEW.sha256}, was sha256:{OLD.sha256}" in done.err
        (tmp_path / "fledge.lock").rename(tmp_path / "aside")
        old = shutil.copy(tmp_path / before["path"], tmp_path / "old.img")
        assert built(fledge) != before
        done = fledge("diff", old, before["path"])
        assert done.code == 1
        assert "\n~ /a: content " in done.out
        assert "    -old" in done.out
        assert "    +new" in done.out


@pytest.mark.real
def test_deleted_manifest(fledge: Fledge, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    with registry.serve(storage) as host:
        registry.push(host, "team/app", OLD, "v1")
        image_project(tmp_path, f"docker://{host}/team/app:v1")
        fledge("lock", *AMD64)
        registry.push(host, "team/app", NEW, "v1")
        manifests = storage / "docker/registry/v2/repositories/team/app/_manifests"
        shutil.rmtree(manifests / "revisions/sha256" / OLD.sha256)
        empty_the_cache()
        done = fledge("build", "--locked", *AMD64)
        assert done.code == 3
        assert f"at sha256:{OLD.sha256}, which its registry does not have any more" in done.err
        assert f"@sha256:{NEW.sha256} now" in done.err
        shutil.rmtree(manifests / "tags")
        done = fledge("build", "--locked", *AMD64)
        assert done.code == 3
        assert f"sha256:{OLD.sha256}" in done.err
        assert "stands for nothing" in done.err


@pytest.mark.real
def test_offline_without_any_network(fledge: Fledge, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-n", "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs root for a namespace without a network")
    with registry.serve(tmp_path / "storage") as host:
        registry.push(host, "team/app", registry.index(OLD, ARM), "v1")
        image_project(tmp_path, f"{host}/team/app:v1")
        fledge("lock", *AMD64)
        fledge("build", *AMD64)
        before = artifact(tmp_path)
        empty_the_cache()
        assert fledge("fetch", *AMD64).code == 0
        command = ["unshare", "-n", sys.executable, "-m", "fledge", "build", "--locked", *AMD64]
        for options in (["--offline"], []):
            (tmp_path / "plugin.cpio.gz").unlink()
            done = subprocess.run(
                [*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            assert artifact(tmp_path) == before
        empty_the_cache()
        done = subprocess.run(
            [*command, "--offline"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 3
        assert OLD.sha256 in done.stderr


@pytest.mark.real
def test_another_user_without_a_network_builds_the_same(
    fledge: Fledge, github: Server, tmp_path: Path
) -> None:
    github.answers["/busybox"] = content(BUSYBOX)
    publish(github, {"kestrel": KESTREL})
    settings = ["env", "TZ=Asia/Tokyo", "LC_ALL=C", "TMPDIR=/dev/shm"]
    shell = ["sh", "-c", 'umask 077; exec "$@"', "sh"]
    with nobody() as user:
        command: list[str | Path] = [*settings, *shell, user.python, "-m", "fledge"]
        with registry.serve(tmp_path / "storage") as host:
            registry.push(host, "team/app", OLD, "v1")
            source = project.source(github.url("/busybox"), BUSYBOX)
            source += f'image = "{host}/team/app:v1"\n'
            project.make(tmp_path, RELEASE_AGENT.format("latest"), project.MAPPINGS, source)
            assert fledge("lock", *AMD64).code == 0
            mine = built(fledge, "--locked")
            for name in ("fledge.toml", "fledge.lock"):
                shutil.copy(tmp_path / name, user.home)
            shutil.copytree(tmp_path / "payload", user.home / "payload")
            publish(github, {"kestrel": KESTREL + b" newer"}, tag="v2")
            registry.push(host, "team/app", NEW, "v1")
            done = user.run([*command, "fetch", *AMD64])
            assert done.returncode == 0, done.stderr
        options = ["--locked", "--offline", "--json", *AMD64]
        done = user.run(["unshare", "--user", "--net", *command, "build", *options])
        if "unshare" in done.stderr:
            pytest.skip("a user may not have a namespace here")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == mine
        record = f"{mine['path']}.provenance.json"
        assert (user.home / record).read_bytes() == (tmp_path / record).read_bytes()


@pytest.mark.real
def test_image_of_a_daemon(fledge: Fledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = f"oci:{make_layout(tmp_path / 'layout')}:hello"
    image_project(tmp_path, "example.com/hello:v1")
    with daemons.dockerd() as socket:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{socket}")
        put = "docker-daemon:example.com/hello:v1", "--dest-daemon-host", f"unix://{socket}"
        daemons.skopeo_copy(source, *put)
        before = built(fledge)
        assert fledge("lock", *AMD64).code == 0
        written = lock.load(tmp_path / "fledge.lock")
        assert written
        assert written.image
        pin = written.image.pins["linux/amd64"]
        assert (written.image.name, pin.manifest) == ("example.com/hello:v1", None)
        write_layout(tmp_path / "other", NEW)
        daemons.skopeo_copy(f"oci:{tmp_path}/other", *put)
        assert fledge("build", "--locked", *AMD64).code == 0, "all is in the cache"
        empty_the_cache()
        done = fledge("build", "--locked", *AMD64)
        assert done.code == 4
        assert f"with config sha256:{pin.config}" in done.err
        daemons.skopeo_copy(source, *put)
        assert fledge("fetch", *AMD64).code == 0
    assert built(fledge, "--locked", "--offline") == before


@pytest.mark.real
def test_manifest_of_a_registry_stays_when_the_daemon_has_the_image(
    fledge: Fledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    source = f"oci:{make_layout(tmp_path / 'layout')}:hello"
    with registry.serve(tmp_path / "storage") as host, daemons.dockerd() as socket:
        name = f"{host}/hello:v1"
        daemons.skopeo_copy(source, f"docker://{name}", "--dest-tls-verify=false")
        image_project(tmp_path, name)
        assert fledge("lock", *AMD64).code == 0
        before = (tmp_path / "fledge.lock").read_text()
        assert "manifest" in before
        monkeypatch.setenv("DOCKER_HOST", f"unix://{socket}")
        put = f"docker-daemon:{name}", "--dest-daemon-host", f"unix://{socket}"
        daemons.skopeo_copy(source, *put)
        assert "docker-daemon:" in fledge("lock", *AMD64).err
        assert (tmp_path / "fledge.lock").read_text() == before
        empty_the_cache()
        assert fledge("build", "--locked", *AMD64).code == 0
