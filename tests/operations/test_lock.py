"""fledge lock, fetch and build: pinned inputs, and inputs without a pin."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fledge.oci.image import ImagePin
from fledge.project import lock
from fledge.project.lock import Lock, LockedSource
from fledge.sources.agent import AgentPin
from fledge.sources.busybox import BusyboxPin
from fledge.tree.digest import Digest
from tests.support import daemons, images, project, registry
from tests.support.httpd import Server, content, status
from tests.support.images import sha256, write_layout
from tests.support.layouts import make_layout
from tests.support.project import Fledge
from tests.support.pythons import nobody
from tests.support.releases import KESTREL, KESTREL_ARM64, publish
from tests.support.tars import file, pack

AMD64 = "--platform", "linux/amd64"
BOTH = *AMD64, "--platform", "linux/arm64"
HTTP_AGENT = '[agent]\nsource_strategy = "http"\nurl = "{}"\n'
RELEASE_AGENT = '[agent]\nversion = "{}"\n'

OLD = images.image(pack(file("a", b"old")))
NEW = images.image(pack(file("a", b"new")))
ARM = images.image(pack(file("a", b"arm")), architecture="arm64")
BUSYBOX = project.busybox()


def image_project(folder: Path, image: str, *tables: str) -> Path:
    """An initramfs based on an image, which needs no tool of the host."""
    source = project.source((folder / "busybox").as_uri(), BUSYBOX) + f'image = "{image}"\n'
    return project.make(folder, *(tables or (project.LOCAL_AGENT,)), source)


def artifact(folder: Path) -> str:
    return sha256((folder / "plugin.cpio.gz").read_bytes())


def built(fledge: Fledge, *options: str) -> dict[str, Any]:
    """Build, and return the digest and inputs."""
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


def test_no_output_goes_over_it(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path)
    fledge("lock")
    before = (tmp_path / "fledge.lock").read_bytes()
    assert fledge("build", "-o", "fledge.lock").code == 2
    assert (tmp_path / "fledge.lock").read_bytes() == before


# Writing the lock


def test_lock_build_check(fledge: Fledge, github: Server, tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", OLD)
    image_project(tmp_path, "oci:layout", RELEASE_AGENT.format("latest"))
    publish(github, {"kestrel": KESTREL})
    done = fledge("lock", *AMD64)
    assert (done.code, done.out) == (0, "fledge.lock\n")
    written = lock.load(tmp_path / "fledge.lock")
    assert written == Lock(
        {
            "image": LockedSource(
                "oci:layout",
                {
                    "linux/amd64": ImagePin(
                        Digest.of(OLD.body),
                        Digest.of(OLD.blobs[0]),
                        (Digest.of(pack(file("a", b"old"))),),
                    )
                },
            ),
            "agent": LockedSource(
                "latest",
                {
                    "amd64": AgentPin(
                        "v1.2.3", github.url("/download/v1.2.3/kestrel"), Digest.of(KESTREL)
                    )
                },
            ),
            "busybox": LockedSource(
                (tmp_path / "busybox").as_uri(), {"": BusyboxPin(Digest.of(BUSYBOX))}
            ),
        }
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
    after = (tmp_path / "fledge.lock").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


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


def test_an_image_from_scratch(fledge: Fledge, tmp_path: Path) -> None:
    platform = {"os": "linux", "architecture": "amd64"}
    config = json.dumps({**platform, "rootfs": {"type": "layers"}}).encode()
    listed = {"config": images.descriptor(f"{images.OCI}.config.v1+json", config), "layers": None}
    body = json.dumps({"schemaVersion": 2, **listed}).encode()
    top = images.Manifest(f"{images.OCI}.manifest.v1+json", body, (config,))
    write_layout(tmp_path / "layout", top)
    image_project(tmp_path, "oci:layout")
    unlocked = built(fledge)
    assert fledge("lock", *AMD64).code == 0
    assert built(fledge, "--locked")["sha256"] == unlocked["sha256"]
    done = fledge("verify", "plugin.cpio.gz")
    assert done.code == 0, done.err


def test_other_platforms_stay(fledge: Fledge, github: Server, tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", images.index(OLD, ARM))
    text = 'version = "1"\nstrategy = "oci_rootfs"\nsource.image = "oci:layout"\n'
    project.write(tmp_path, "fledge.toml", text.encode())
    publish(github, {"kestrel": KESTREL, "kestrel-linux-arm64": KESTREL_ARM64})
    assert fledge("lock", *BOTH).code == 0
    both = lock.load(tmp_path / "fledge.lock")
    assert both
    assert list(both.sections["image"].pins) == ["linux/amd64", "linux/arm64"]
    assert both.sections["agent"].pins["arm64"].sha256 == Digest.of(KESTREL_ARM64)
    assert "busybox" not in both.sections
    write_layout(tmp_path / "layout", images.index(NEW, ARM))
    publish(github, {"kestrel": KESTREL, "kestrel-linux-arm64": KESTREL_ARM64}, tag="v2")
    assert fledge("lock", *AMD64).code == 0
    after = lock.load(tmp_path / "fledge.lock")
    assert after
    assert after.sections["image"].pins["linux/amd64"].manifest == Digest.of(NEW.body)
    assert after.sections["image"].pins["linux/arm64"] == both.sections["image"].pins["linux/arm64"]
    assert [pin.version for pin in after.sections["agent"].pins.values()] == ["v2", "v1.2.3"]


def test_pins_of_another_name_go(fledge: Fledge, tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", images.index(OLD, ARM))
    shutil.copytree(tmp_path / "layout", tmp_path / "copy")
    text = 'version = "1"\nstrategy = "oci_rootfs"\nsource.image = "oci:{}"\n' + project.LOCAL_AGENT
    project.write(tmp_path, "kestrel", b"#!")
    for name, platforms in (("layout", BOTH), ("copy", AMD64)):
        project.write(tmp_path, "fledge.toml", text.format(name).encode())
        assert fledge("lock", *platforms).code == 0
    written = lock.load(tmp_path / "fledge.lock")
    assert written
    assert "agent" not in written.sections
    assert written.sections["image"].name == "oci:copy"
    assert list(written.sections["image"].pins) == ["linux/amd64"]


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


def test_no_place_for_a_lock(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path)
    (tmp_path / "fledge.lock").mkdir()
    done = fledge("lock")
    assert done.code == 2
    assert "it is a folder" in done.err


def test_the_cache_does_not_hide_where_the_agent_is(
    fledge: Fledge, github: Server, tmp_path: Path
) -> None:
    """With a checksum, a build may take the agent from the cache without the API."""
    checksum = f'checksum = "{sha256(KESTREL)}"\n'
    project.make(tmp_path, RELEASE_AGENT.format("v1.2.3") + checksum)
    publish(github, {"kestrel": KESTREL})
    fledge("build")
    fledge("lock")
    written = lock.load(tmp_path / "fledge.lock")
    assert written
    assert written.sections["agent"].pins["amd64"].url == github.url("/download/v1.2.3/kestrel")


# Building with the lock


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
    """Other tools write the same image with another manifest, but the same config."""
    write_layout(tmp_path / "layout", OLD)
    image_project(tmp_path, "oci:layout")
    fledge("lock", *AMD64)
    fledge("build", *AMD64)
    before = artifact(tmp_path)
    plain = images.image(pack(file("a", b"old")), compressed=False)
    write_layout(tmp_path / "layout", plain)
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
    write_layout(tmp_path / "layout", images.index(OLD, ARM))
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
    assert "differ from those of its config" in done.err


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
    write_layout(tmp_path / "layout", images.index(OLD, ARM))
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
        assert "fledge.lock does not exist" in done.err
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
@pytest.mark.parametrize("place", ["layout", "registry"])
def test_an_index_decides_and_the_lock_remembers(
    fledge: Fledge, tmp_path: Path, place: str
) -> None:
    """The config of the image for amd64 says arm64, as configs that a cross build leaves do."""
    top = images.index(replace(ARM, platform={"os": "linux", "architecture": "amd64"}))
    write_layout(tmp_path / "layout", top)
    with registry.serve(tmp_path / "storage") as host:
        registry.push(host, "team/app", top, "v1")
        image = f"docker://{host}/team/app:v1" if place == "registry" else "oci:layout"
        image_project(tmp_path, image)
        said = "listed for linux/amd64, although its config says linux/arm64; the list decides"
        assert said in " ".join(fledge("build", *AMD64).err.split())
        before = artifact(tmp_path)
        assert fledge("lock", *AMD64).code == 0
        empty_the_cache()
        done = fledge("build", "--locked", *AMD64)
        assert done.code == 0, done.err
        assert said in " ".join(done.err.split())
        assert artifact(tmp_path) == before


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
        assert f"at sha256:{OLD.sha256}, which its registry no longer has" in done.err
        assert "the name now stands for " in done.err
        assert f"@sha256:{NEW.sha256}" in done.err
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
        registry.push(host, "team/app", images.index(OLD, ARM), "v1")
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
        pin = written.sections["image"].pins["linux/amd64"]
        assert (written.sections["image"].name, pin.manifest) == ("example.com/hello:v1", None)
        write_layout(tmp_path / "other", NEW)
        daemons.skopeo_copy(f"oci:{tmp_path}/other", *put)
        assert fledge("build", "--locked", *AMD64).code == 0, "all is in the cache"
        empty_the_cache()
        done = fledge("build", "--locked", *AMD64)
        assert done.code == 4
        assert f"with config {pin.config}" in done.err
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
