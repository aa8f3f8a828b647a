"""Fifos, sockets, devices, folders and files of /proc wherever a file is read.

One that is opened would hang, or fill memory: the time limit of the tests stops it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.support import project
from tests.support.files import KINDS, irregular
from tests.support.project import Fledge

EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def replaced(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    irregular(path.parent, kind, path.name)


@EVERY_KIND
@pytest.mark.parametrize("name", ["fledge.toml", "fledge.lock", "kestrel", "busybox"])
def test_inputs_of_a_build(fledge: Fledge, tmp_path: Path, name: str, kind: str) -> None:
    project.make(tmp_path)
    replaced(tmp_path / name, kind)
    outcome = fledge("build")
    assert outcome.code == 2, outcome.err
    assert "not a regular file" in outcome.err
    assert name in outcome.err
    assert not (tmp_path / "plugin.cpio.gz").exists()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "folder"])
def test_mapped_file(fledge: Fledge, tmp_path: Path, kind: str) -> None:
    project.make(tmp_path)
    replaced(tmp_path / "payload/webserver.yaml", kind)
    outcome = fledge("build")
    assert outcome.code == 2
    assert "webserver.yaml is " in outcome.err
    assert "only files and folders can be mapped" in outcome.err


def test_file_of_proc_in_a_mapped_folder(fledge: Fledge, tmp_path: Path) -> None:
    project.make(tmp_path, project.LOCAL_AGENT, '[mappings]\n"/proc/self/net" = "/net"\n')
    outcome = fledge("build")
    assert outcome.code == 2
    assert "made up by the kernel" in outcome.err


@EVERY_KIND
@pytest.mark.parametrize(
    "command", [("inspect",), ("inspect", "--list"), ("diff", "good"), ("verify",)]
)
def test_artifact(fledge: Fledge, tmp_path: Path, command: tuple[str, ...], kind: str) -> None:
    project.make(tmp_path)
    assert fledge("build").code == 0
    shutil.copy(tmp_path / "plugin.cpio.gz", tmp_path / "good")
    replaced(tmp_path / "plugin.cpio.gz", kind)
    outcome = fledge(*command, "plugin.cpio.gz")
    assert outcome.code == 2, outcome.err
    assert "plugin.cpio.gz could not be read: it is " in outcome.err


@EVERY_KIND
def test_provenance(fledge: Fledge, tmp_path: Path, kind: str) -> None:
    project.make(tmp_path)
    assert fledge("build").code == 0
    replaced(tmp_path / "plugin.cpio.gz.provenance.json", kind)
    outcome = fledge("verify", "plugin.cpio.gz")
    assert outcome.code == 2
    assert "plugin.cpio.gz.provenance.json could not be read: it is " in outcome.err
    assert fledge("inspect", "plugin.cpio.gz").code == 0


@EVERY_KIND
@pytest.mark.parametrize("name", ["index.json", "blob"])
def test_layout(fledge: Fledge, tmp_path: Path, name: str, kind: str) -> None:
    project.make_rootfs(tmp_path)
    blobs = tmp_path / "layout" / "blobs" / "sha256"
    largest = max(blobs.iterdir(), key=lambda path: path.stat().st_size)
    replaced(largest if name == "blob" else tmp_path / "layout" / name, kind)
    outcome = fledge("build")
    assert outcome.code == 4
    assert "not a regular file" in outcome.err


@EVERY_KIND
@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
@pytest.mark.slow
def test_archive(fledge: Fledge, tmp_path: Path, transport: str, kind: str) -> None:
    toml = project.make_rootfs(tmp_path)
    irregular(tmp_path, kind, "image.tar")
    toml.write_text(toml.read_text().replace("oci:layout:hello", f"{transport}:image.tar"))
    outcome = fledge("build")
    assert outcome.code == 2
    assert "image.tar could not be read: it is " in outcome.err


@EVERY_KIND
@pytest.mark.slow
def test_blob_of_the_cache(fledge: Fledge, tmp_path: Path, kind: str) -> None:
    """It is worth no more than a missing one. A folder cannot be replaced by a file."""
    project.make_rootfs(tmp_path)
    assert fledge("build", "-o", "one.img").code == 0
    cache = Path(os.environ["FLEDGE_CACHE_DIR"])
    for blob in list((cache / "blobs" / "sha256").iterdir()):
        replaced(blob, kind)
    outcome = fledge("build", "-o", "two.img")
    if kind == "folder":
        assert outcome.code == 5
        assert "is a directory" in outcome.err
    else:
        assert (tmp_path / "one.img").read_bytes() == (tmp_path / "two.img").read_bytes()
    assert fledge("cache", "verify").code == 0


@EVERY_KIND
def test_docker_config(
    fledge: Fledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    toml = project.make_rootfs(tmp_path)
    toml.write_text(toml.read_text().replace("oci:layout:hello", "docker-daemon:hello"))
    config = Path(os.environ["DOCKER_CONFIG"])
    config.mkdir(parents=True)
    irregular(config, kind, "config.json")
    outcome = fledge("build")
    assert outcome.code == 2
    assert "config.json" in outcome.err
    assert "not a regular file" in outcome.err


@EVERY_KIND
def test_docker_context(
    fledge: Fledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    toml = project.make_rootfs(tmp_path)
    toml.write_text(toml.read_text().replace("oci:layout:hello", "docker-daemon:hello"))
    config = Path(os.environ["DOCKER_CONFIG"])
    config.mkdir(parents=True)
    (config / "config.json").write_text(json.dumps({"currentContext": "far"}))
    folder = config / "contexts/meta" / hashlib.sha256(b"far").hexdigest()
    folder.mkdir(parents=True)
    irregular(folder, kind, "meta.json")
    outcome = fledge("build")
    assert outcome.code == 2
    assert "context" in outcome.err


@EVERY_KIND
@pytest.mark.parametrize("name", ["a.key", "a.pub", "policy.toml", "x.gz.provenance.dsse.json"])
def test_keys_and_signatures(fledge: Fledge, tmp_path: Path, name: str, kind: str) -> None:
    project.make(tmp_path)
    assert fledge("build", "-q", "-o", "x.gz").code == 0
    assert fledge("keygen", "-o", "a").code == 0
    replaced(tmp_path / name, kind)
    if name == "policy.toml":
        outcome = fledge("verify", "x.gz", "--no-rebuild", "--policy", name)
    elif name == "a.pub":
        outcome = fledge("verify", "x.gz", "--no-rebuild", "--key", name)
    else:
        outcome = fledge("sign", "x.gz", "--key", "a.key")
    assert outcome.code == 2, outcome.err
    assert "not a regular file" in outcome.err
    assert name in outcome.err
