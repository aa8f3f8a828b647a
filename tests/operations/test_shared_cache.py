"""Builds that are kept in a registry, and taken from it."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from fledge.oci import artifact as artifacts
from fledge.tree.digest import Digest
from tests.support import project, registry
from tests.support.machines import SERVER, machines
from tests.support.project import Fledge
from tests.support.pythons import nobody

pytestmark = pytest.mark.real

CACHE = '\n[cache]\nregistry = "{}/team/cache"\ntrusted = {}\n'


def make(folder: Path, host: str, *tables: str, trusted: bool = True) -> Path:
    """Write a project that shares its builds in a registry."""
    cache = CACHE.format(host, str(trusted).lower())
    return project.make(folder, project.LOCAL_AGENT, project.MAPPINGS, cache, *tables)


def tags(host: str) -> list[str]:
    answer = requests.get(f"http://{host}/v2/team/cache/tags/list", timeout=10)
    return sorted(answer.json().get("tags") or []) if answer.ok else []


def keys(host: str) -> list[str]:
    return [tag for tag in tags(host) if tag.startswith("build-")]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[str]:
    with registry.serve(tmp_path / "storage", deletes=True) as found:
        yield found


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("plugin.*")}


@pytest.fixture
def kept(fledge: Fledge, host: str, tmp_path: Path) -> dict[str, bytes]:
    """What a build has written that is kept in the registry; it is gone from here."""
    make(tmp_path, host)
    assert fledge("lock").code == 0
    done = fledge("build", "--locked", "--cache-to", f"{host}/team/cache")
    assert done.code == 0, done.err
    assert "keep" in done.err
    found = outputs(tmp_path)
    for name in found:
        (tmp_path / name).unlink()
    return found


def test_the_second_build_pulls(
    kept: dict[str, bytes], fledge: Fledge, host: str, tmp_path: Path
) -> None:
    assert len(kept) == 2
    done = fledge("build", "--locked")
    assert done.code == 0, done.err
    assert "built before" in done.err
    assert "mappings" not in done.err, "nothing was built"
    assert outputs(tmp_path) == kept
    assert fledge("verify", "plugin.cpio.gz").code == 0
    assert len(keys(host)) == 1


def test_software_is_listed_only_once(fledge: Fledge, host: str, tmp_path: Path) -> None:
    make(tmp_path, host, '\n[sbom]\nformats = ["spdx", "cyclonedx"]\n')
    assert fledge("lock").code == 0
    assert fledge("build", "--locked", "--cache-to", f"{host}/team/cache").code == 0
    found = outputs(tmp_path)
    assert len(found) == 4
    for name in found:
        (tmp_path / name).unlink()
    done = fledge("build", "--locked")
    assert "built before" in done.err
    assert "sbom" not in done.err
    assert outputs(tmp_path) == found
    done = fledge("build", "--locked", "-o", "other.cpio.gz")
    assert "built before" not in done.err, "the name is in the document"


def test_an_input_that_changes_builds_anew(
    kept: dict[str, bytes], fledge: Fledge, host: str, tmp_path: Path
) -> None:
    changes: dict[str, Callable[[], object]] = {
        "content": lambda: (tmp_path / "payload/webserver.yaml").write_bytes(b"port: 81\n"),
        "mode": lambda: (tmp_path / "payload/webserver.yaml").chmod(0o755),
        "agent": lambda: (tmp_path / "kestrel").write_bytes(b"#!/bin/busybox sh\nexit\n"),
        "link": lambda: (tmp_path / "payload/site/new").symlink_to("index.html"),
        "config": lambda: (tmp_path / "fledge.toml").write_text(
            (tmp_path / "fledge.toml").read_text() + "\n[archive]\nlevel = 1\n"
        ),
    }
    for name, change in changes.items():
        change()
        done = fledge("build", "--locked", "--cache-to", f"{host}/team/cache")
        assert done.code == 0, (name, done.err)
        assert "built before" not in done.err, name
        assert outputs(tmp_path) != kept
    assert len(keys(host)) == 1 + len(changes)


def test_the_time_is_part_of_the_key(
    kept: dict[str, bytes], fledge: Fledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    done = fledge("build", "--locked")
    assert "built before" not in done.err
    assert done.code == 0


def test_tables_that_change_no_artifact_do_not_count(
    kept: dict[str, bytes], fledge: Fledge, host: str, tmp_path: Path
) -> None:
    config = tmp_path / "fledge.toml"
    text = config.read_text()
    config.write_text(text + '\n[target]\nkernel = "debian"\n')
    assert "built before" in fledge("build", "--locked").err
    config.write_text(text.replace(CACHE.format(host, "true"), ""))
    assert "built before" not in fledge("build", "--locked").err


def test_only_locked_builds_are_shared(
    kept: dict[str, bytes], fledge: Fledge, host: str, tmp_path: Path
) -> None:
    done = fledge("build")
    assert done.code == 0
    assert "built before" not in done.err
    done = fledge("build", "--cache-to", f"{host}/team/cache")
    assert done.code == 2
    assert "--locked" in done.err


def test_what_a_program_of_the_host_writes_is_not_shared(
    fledge: Fledge, host: str, tmp_path: Path
) -> None:
    config = project.make_rootfs(tmp_path)
    text = config.read_text().replace("[filesystem]", '[filesystem]\nbuilder = "mkfs"')
    config.write_text(text + CACHE.format(host, "true"))
    assert fledge("lock").code == 0
    done = fledge("build", "--locked", "--cache-to", f"{host}/team/cache")
    assert done.code == 0, done.err
    assert "is not kept: mkfs.ext4 of this machine" in done.err
    assert keys(host) == []


@pytest.mark.parametrize("reference", ["{}/team/cache:latest", "{}/team/cache@sha256:" + 64 * "0"])
def test_a_cache_has_no_tag(
    reference: str, kept: dict[str, bytes], fledge: Fledge, host: str
) -> None:
    done = fledge("build", "--locked", "--cache-to", reference.format(host))
    assert done.code == 2
    assert "Leave out the tag" in done.err


def test_a_cache_that_nobody_trusts_is_not_used(
    kept: dict[str, bytes],
    fledge: Fledge,
    host: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tmp_path / "fledge.toml"
    config.write_text(config.read_text().replace("trusted = true", "trusted = false"))
    done = fledge("build", "--locked")
    assert done.code == 0
    assert "is not used" in done.err
    monkeypatch.setenv("FLEDGE_CACHE_REGISTRY", f"{host}/team/cache")
    assert "is not used" in fledge("build", "--locked").err
    monkeypatch.setenv("FLEDGE_CACHE_TRUSTED", "1")
    assert "built before" in fledge("build", "--locked").err


def read_manifest(host: str, tag: str) -> bytes:
    url = f"http://{host}/v2/team/cache/manifests/{tag}"
    accept = {"Accept": artifacts.MANIFEST_TYPE}
    return requests.get(url, headers=accept, timeout=10).content


def write_manifest(host: str, tag: str, manifest: bytes) -> None:
    requests.put(
        f"http://{host}/v2/team/cache/manifests/{tag}",
        data=manifest,
        headers={"Content-Type": artifacts.MANIFEST_TYPE},
        timeout=10,
    ).raise_for_status()


def test_a_poisoned_entry_is_refused(
    kept: dict[str, bytes], fledge: Fledge, host: str, tmp_path: Path
) -> None:
    [key] = keys(host)
    good = read_manifest(host, key)
    # The artifact of another build under this key.
    (tmp_path / "payload/webserver.yaml").write_bytes(b"port: 666\n")
    assert fledge("build", "--locked", "--cache-to", f"{host}/team/cache").code == 0
    [other] = set(keys(host)) - {key}
    bad = read_manifest(host, other)
    (tmp_path / "payload/webserver.yaml").write_bytes(b"port: 80\n")
    stranger = {**json.loads(good), "artifactType": "application/vnd.example"}
    wrong = Digest.of(b"other").hex.encode()
    for manifest, words in (
        (bad, "is not the artifact of this build"),
        (good.replace(artifact_digest(good).encode(), wrong), "is not the artifact of this build"),
        (json.dumps(stranger).encode(), "is not an artifact of fledge"),
    ):
        write_manifest(host, key, manifest)
        done = fledge("build", "--locked")
        assert done.code == 0, done.err
        assert "is not used" in done.err, words
        assert words in done.err
        assert "built before" not in done.err
        assert outputs(tmp_path) == kept, words


def artifact_digest(manifest: bytes) -> str:
    annotations = json.loads(manifest)["annotations"]
    return str(annotations[f"{artifacts.PREFIX}digest"]).removeprefix("sha256:")


def test_bytes_that_are_not_what_the_manifest_says(
    kept: dict[str, bytes], fledge: Fledge, host: str, tmp_path: Path
) -> None:
    [key] = keys(host)
    chunk = json.loads(read_manifest(host, key))["layers"][0]["digest"].removeprefix("sha256:")
    blob = tmp_path / f"storage/docker/registry/v2/blobs/sha256/{chunk[:2]}/{chunk}/data"
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    done = fledge("build", "--locked")
    assert done.code == 0
    assert "is not used" in done.err
    assert outputs(tmp_path) == kept


def test_a_cache_that_is_gone_is_no_failure(fledge: Fledge, tmp_path: Path) -> None:
    with registry.serve(tmp_path / "storage") as host:
        make(tmp_path, host)
    assert fledge("lock").code == 0
    done = fledge("build", "--locked", "--cache-to", f"{host}/team/cache")
    assert done.code == 0
    assert "is not used" in done.err
    assert "is not kept" in done.err
    assert len(outputs(tmp_path)) == 2


def test_a_cache_that_dies_in_the_middle(
    kept: dict[str, bytes], fledge: Fledge, host: str, tmp_path: Path
) -> None:
    [key] = keys(host)
    chunk = json.loads(read_manifest(host, key))["layers"][0]["digest"]
    with registry.forward(host) as broken:
        broken.answers[f"/v2/team/cache/blobs/{chunk}"] = lambda exchange: exchange.reply(
            200, b"x" * 1000, cut=10
        )
        config = tmp_path / "fledge.toml"
        config.write_text(config.read_text().replace(host, broken.url("").split("//")[1]))
        done = fledge("build", "--locked")
    assert done.code == 0
    assert "is not used" in done.err
    assert outputs(tmp_path)["plugin.cpio.gz"] == kept["plugin.cpio.gz"]


def test_pruning(
    kept: dict[str, bytes],
    fledge: Fledge,
    host: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = keys(host)
    later = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: later)
    (tmp_path / "payload/webserver.yaml").write_bytes(os.urandom(100_000))
    assert fledge("build", "--locked", "--cache-to", f"{host}/team/cache").code == 0
    prune = ("cache", "prune", "--registry", f"{host}/team/cache")
    done = fledge(*prune, "--older-than", "1d")
    assert done.out.startswith("removed: 0 builds")
    assert "left: 2 builds" in done.out
    done = fledge(*prune, "--max-size", "102KB")
    assert done.out.startswith("removed: 1 build,"), done.out
    assert len(keys(host)) == 1
    assert keys(host) != first, "the older one is gone"
    later += 10
    assert fledge(*prune, "--older-than", "9s").out.startswith("removed: 1 build,")
    assert tags(host) == [], "neither builds nor lists of referrers"


def test_a_registry_that_does_not_delete(fledge: Fledge, tmp_path: Path) -> None:
    with registry.serve(tmp_path / "storage") as host:
        make(tmp_path, host)
        assert fledge("lock").code == 0
        assert fledge("build", "--locked", "--cache-to", f"{host}/team/cache").code == 0
        prune = ("cache", "prune", "--registry", f"{host}/team/cache", "--max-size", "0B")
        done = fledge(*prune)
    assert done.code == 3
    assert "does not delete" in done.err


def test_two_machines(fledge: Fledge, tmp_path: Path) -> None:
    """Other networks, users, homes and caches; only the registry is shared."""
    address = {"addr": f"{SERVER}:0"}
    with (
        nobody() as user,
        machines(user, 2) as [first, second],
        registry.serve(tmp_path / "storage", http=address) as host,
    ):
        user.home.chmod(0o755)
        binary = project.busybox()
        busybox = project.write(user.home, "busybox", binary)
        for machine in (first, second):
            make(machine.home, host, project.source(busybox.as_uri(), binary))
        done = first.run("lock")
        assert done.returncode == 0, done.stderr
        shutil.copy(first.home / "fledge.lock", second.home)
        done = first.run("build", "--locked", "--cache-to", f"{host}/team/cache")
        assert done.returncode == 0, done.stderr
        busybox.rename(user.home / "hidden")
        done = second.run("build", "--locked")
        assert done.returncode == 0, done.stderr
        assert "built before" in done.stderr
        assert outputs(second.home) == outputs(first.home)
        (second.home / "payload/webserver.yaml").write_bytes(b"port: 81\n")
        (user.home / "hidden").rename(busybox)
        done = second.run("build", "--locked")
        assert done.returncode == 0, done.stderr
        assert "built before" not in done.stderr
        assert outputs(second.home) != outputs(first.home)


def test_a_policy_says_whose_builds_are_used(
    fledge: Fledge, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ci", "stranger", "other"):
        assert fledge("keygen", "-o", name).code == 0
    make(tmp_path, host, trusted=False)
    (tmp_path / "policy.toml").write_text('keys = ["ci.pub"]\n')
    config = tmp_path / "fledge.toml"
    text = config.read_text().replace("trusted = false", 'policy = "policy.toml"')
    config.write_text(text)
    assert fledge("lock").code == 0
    keep = ("build", "--locked", "--cache-to", f"{host}/team/cache")
    for key, is_used in (((), False), (("stranger.key",), False), (("ci.key",), True)):
        done = fledge(*keep, *(option for each in key for option in ("--sign-with", each)))
        assert done.code == 0, done.err
        assert "built before" not in done.err
        done = fledge("build", "--locked")
        assert done.code == 0, done.err
        assert ("built before" in done.err) == is_used, (key, done.err)
    done = fledge("build", "--locked", "--key", "other.pub")
    assert "built before" not in done.err, "the command line counts more than the project"


def move(host: str, source: str, target: str) -> None:
    """Put what one tag stands for under another, as anyone may who can push there."""
    write_manifest(host, target, read_manifest(host, source))


def test_a_signed_build_is_not_another_one(
    fledge: Fledge, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fledge("keygen", "-o", "ci").code == 0
    make(tmp_path, host, trusted=False)
    assert fledge("lock").code == 0
    build = ("build", "--locked", "--key", "ci.pub")
    keep = (*build, "--cache-to", f"{host}/team/cache", "--sign-with", "ci.key")
    assert fledge(*keep).code == 0
    [mine] = keys(host)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert fledge(*keep).code == 0
    [other] = set(keys(host)) - {mine}
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    move(host, other, mine)
    done = fledge(*build)
    assert done.code == 0, done.err
    assert "is not the artifact of this build" in done.err
    assert "built before" not in done.err


def test_signatures_come_with_a_build_and_go_with_the_next(
    fledge: Fledge, host: str, tmp_path: Path
) -> None:
    assert fledge("keygen", "-o", "ci").code == 0
    make(tmp_path, host, trusted=False)
    assert fledge("lock").code == 0
    build = ("build", "--locked", "--key", "ci.pub")
    keep = (*build, "--cache-to", f"{host}/team/cache", "--sign-with", "ci.key")
    assert fledge(*keep).code == 0
    envelope = tmp_path / "plugin.cpio.gz.provenance.dsse.json"
    signed = envelope.read_bytes()
    envelope.unlink()
    done = fledge(*build)
    assert "built before" in done.err
    assert envelope.read_bytes() == signed
    assert fledge("verify", "plugin.cpio.gz", "--key", "ci.pub", "--no-rebuild").code == 0
    (tmp_path / "payload/webserver.yaml").write_bytes(b"port: 81\n")
    done = fledge(*build)
    assert done.code == 0
    assert "dsse.json is removed: it was for another build" in done.err
    assert not envelope.exists()


def test_a_build_that_was_pulled_is_kept_elsewhere(
    kept: dict[str, bytes], fledge: Fledge, host: str
) -> None:
    done = fledge("build", "--locked", "--cache-to", f"{host}/team/mirror")
    assert "built before" in done.err
    answer = requests.get(f"http://{host}/v2/team/mirror/tags/list", timeout=10)
    assert keys(host)[0] in answer.json()["tags"]


def test_what_is_wrong_with_a_key_is_told_before_the_build(
    kept: dict[str, bytes], fledge: Fledge, tmp_path: Path
) -> None:
    done = fledge("build", "--locked", "--sign-with", "missing.key")
    assert done.code == 2
    assert "missing.key" in done.err
    assert outputs(tmp_path) == {}


def test_a_policy_that_has_expired_is_refused(fledge: Fledge, host: str, tmp_path: Path) -> None:
    assert fledge("keygen", "-o", "ci").code == 0
    config = make(tmp_path, host, trusted=False)
    config.write_text(config.read_text().replace("trusted = false", 'policy = "policy.toml"'))
    policy = tmp_path / "policy.toml"
    policy.write_text('keys = ["ci.pub"]\nexpires = 2020-01-01T00:00:00Z\n')
    assert fledge("lock").code == 0
    done = fledge("build", "--locked")
    assert done.code == 2
    assert "policy.toml expired" in done.err
