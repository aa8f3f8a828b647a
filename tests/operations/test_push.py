"""Artifacts on their way to a registry: what is sent, what is not, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zstandard

import fledge as library
from fledge.errors import ConfigError, CorruptError, NetworkError
from fledge.host.settings import Settings
from fledge.oci.artifact import EMPTY_CONFIG, TITLE, RemoteArtifact, serialize
from fledge.operations.push import push
from fledge.report import Reporter
from fledge.session import Session
from fledge.store.cache import Cache
from fledge.tree.digest import Digest
from tests.support import registry, shipped
from tests.support.httpd import status
from tests.support.oci_registry import OciRegistry
from tests.support.shipped import CHUNK, PAYLOAD, noise

pytestmark = pytest.mark.slow

real = pytest.mark.real

KIND = re.compile("/(manifests|blobs/uploads|blobs|referrers|tags)/")
"""What a request of a registry is for."""


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(Settings(os.environ), Cache(tmp_path / "cache"), Reporter(), backoff=0)


def requests_of(served: OciRegistry) -> list[str]:
    """The methods and what they were for, of all requests so far; forgets them."""
    kinds = [KIND.search(each.path) for each in served.seen]
    made = [
        f"{each.method} {kind[1]}" for each, kind in zip(served.seen, kinds, strict=True) if kind
    ]
    served.seen.clear()
    return made


def test_manifest(web: Path, served: OciRegistry, session: Session) -> None:
    [pushed] = push(web, f"{served.host}/team/web:1.0", session=session)
    manifest = served.manifest("team/web", "1.0")
    blobs = served.repository("team/web").blobs
    assert pushed.reference.startswith(f"{served.host}/team/web:1.0@sha256:")
    assert pushed.digest.hex == hashlib.sha256(web.read_bytes()).hexdigest()
    assert manifest["artifactType"] == "application/vnd.fledge.artifact.v1"
    assert manifest["config"]["mediaType"] == "application/vnd.volant.plugin.manifest.v1+json"
    assert (
        blobs[manifest["config"]["digest"]] == (web.parent / "web.img.manifest.json").read_bytes()
    )
    assert manifest["annotations"] == {
        "com.github.volantvm.fledge.chunk-size": str(CHUNK),
        "com.github.volantvm.fledge.digest": str(pushed.digest),
        "com.github.volantvm.fledge.platform": "linux/amd64",
        "com.github.volantvm.fledge.size": str(web.stat().st_size),
        "com.github.volantvm.fledge.type": "ext4",
        "org.opencontainers.image.created": "2024-01-01T00:00:00Z",
        "org.opencontainers.image.title": "web.img",
        "org.opencontainers.image.version": "1.27",
    }
    content = bytearray(web.stat().st_size)
    for layer in manifest["layers"]:
        assert layer["mediaType"] == "application/vnd.fledge.chunk.v1+zstd"
        offset = int(layer["annotations"]["com.github.volantvm.fledge.offset"])
        part = zstandard.decompress(blobs[layer["digest"]])
        assert layer["annotations"]["com.github.volantvm.fledge.digest"] == str(Digest.of(part))
        assert any(part)
        content[offset : offset + len(part)] = part
    assert bytes(content) == web.read_bytes()
    [referrer] = [m for _, m in served.repository("team/web").manifests.values() if b"subject" in m]
    document = json.loads(referrer)
    assert document["artifactType"] == "application/vnd.in-toto+json"
    assert document["subject"]["digest"] == served.repository("team/web").tags["1.0"]
    assert document["annotations"] == {
        "in-toto.io/predicate-type": "https://slsa.dev/provenance/v1"
    }
    statement = (web.parent / "web.img.provenance.json").read_bytes()
    assert blobs[document["layers"][0]["digest"]] == statement


def test_base_image_in_annotations(tmp_path: Path, served: OciRegistry, session: Session) -> None:
    source = shipped.disk(tmp_path)
    path = source.with_name("web.img.provenance.json")
    statement = json.loads(path.read_bytes())
    [image] = [
        each
        for each in statement["predicate"]["buildDefinition"]["resolvedDependencies"]
        if each["name"] == "image"
    ]
    digest = image["digest"]["sha256"]
    image["uri"] = f"docker://docker.io/library/nginx:1.27@sha256:{digest}"
    path.write_text(json.dumps(statement))
    push(source, f"{served.host}/web", session=session)
    annotations = served.manifest("web", "latest")["annotations"]
    assert annotations["org.opencontainers.image.base.name"] == "docker.io/library/nginx:1.27"
    assert annotations["org.opencontainers.image.base.digest"] == f"sha256:{digest}"


def test_a_new_version_relies_on_the_last_ones(
    web: Path, served: OciRegistry, session: Session
) -> None:
    push(web, f"{served.host}/web:1.9", session=session)
    requests_of(served)
    [pushed] = push(web, f"{served.host}/web:1.10", session=session)
    made = requests_of(served)
    assert pushed.sent == 0
    assert made.count("HEAD blobs") < 5, "no chunk is asked for"


def test_each_under_its_own_name(
    web: Path, tmp_path: Path, served: OciRegistry, session: Session
) -> None:
    plain = tmp_path / "other.cpio"
    shutil.copy(next(web.parent.glob("*.cpio*"), web), plain)
    pushed = push([web, plain], f"{served.host}/team/", session=session)
    names = [each.reference.partition("@")[0] for each in pushed]
    assert names == [f"{served.host}/team/web:1.27", f"{served.host}/team/other:latest"]
    assert served.manifest("team/web", "1.27")["annotations"][TITLE] == "web.img"
    assert served.manifest("team/other", "latest")["annotations"][TITLE] == "other.cpio"


def test_second_push_sends_nothing(web: Path, served: OciRegistry, session: Session) -> None:
    name = f"{served.host}/web:1"
    first = push(web, name, session=session)
    requests_of(served)
    second = push(web, name, session=session)
    made = requests_of(served)
    assert second[0].sent == 0
    assert second[0].reference == first[0].reference
    assert made.count("POST blobs/uploads") == 0
    # One for the config, and two for what a referrer consists of.
    assert made.count("HEAD blobs") <= 3


def test_changed_file_sends_few_chunks(web: Path, served: OciRegistry, session: Session) -> None:
    name = f"{served.host}/web:1"
    push(web, name, session=session)
    chunks = len(served.manifest("web", "1")["layers"])
    with web.open("r+b") as file:
        start = web.read_bytes().index(noise(PAYLOAD)[:4096])
        file.seek(start + 2 * CHUNK)
        file.write(b"changed")
    for document in ("web.img.provenance.json", "web.img.manifest.json"):
        (web.parent / document).unlink()
    requests_of(served)
    [pushed] = push(web, name, session=session)
    made = requests_of(served)
    assert made.count("POST blobs/uploads") == 1
    assert 0 < pushed.sent < 1.1 * CHUNK
    assert len(served.manifest("web", "1")["layers"]) == chunks


def test_chunks_under_another_tag_are_not_sent(
    web: Path, served: OciRegistry, session: Session
) -> None:
    push(web, f"{served.host}/web:1", session=session)
    [pushed] = push(web, f"{served.host}/web:2", session=session)
    assert pushed.sent == 0


def test_chunks_that_the_tag_has_and_the_registry_lost(
    web: Path, served: OciRegistry, session: Session
) -> None:
    name = f"{served.host}/web:1"
    push(web, name, session=session)
    own = served.repository("web")
    lost = own.manifests[own.tags["1"]]
    missing = [layer for layer in json.loads(lost[1])["layers"] if layer["size"] > CHUNK // 2]
    for layer in missing:
        del own.blobs[layer["digest"]]
    [pushed] = push(web, name, session=session)
    assert pushed.sent == sum(layer["size"] for layer in missing)
    library.pull(name, web.parent, session=session)


def test_all_zeros(tmp_path: Path, served: OciRegistry, session: Session) -> None:
    """An ext4 image of which only the superblock is not zeros has one chunk; no chunk is none."""
    remote = RemoteArtifact(
        name="zeros.img",
        digest=Digest.of(bytes(1 << 20)),
        size=1 << 20,
        kind="ext4",
        platform="",
        config=EMPTY_CONFIG,
        chunk_size=CHUNK,
    )
    served.put_blob("web", b"{}")
    served.put("web", json.loads(serialize(remote)), "1")
    [pulled] = library.pull(f"{served.host}/web:1", tmp_path, session=session)
    assert pulled.path.read_bytes() == bytes(1 << 20)
    assert pulled.path.stat().st_blocks == 0


def test_several_under_one_tag(artifacts: Path, served: OciRegistry, session: Session) -> None:
    paths = [
        artifacts / architecture / name
        for architecture in ("amd64", "arm64")
        for name in ("web.img", "plugin.cpio.gz")
    ]
    pushed = push(paths, f"{served.host}/web:1", session=session)
    index = served.manifest("web", "1")
    assert index["mediaType"] == "application/vnd.oci.image.index.v1+json"
    found = [
        (
            each["platform"]["architecture"],
            each["annotations"]["org.opencontainers.image.title"],
            each["annotations"]["com.github.volantvm.fledge.type"],
            each["digest"],
        )
        for each in index["manifests"]
    ]
    assert found == [
        (architecture, name, kind, each.reference.partition("@")[2])
        for (architecture, name, kind), each in zip(
            [
                (architecture, name, kind)
                for architecture in ("amd64", "arm64")
                for name, kind in (("web.img", "ext4"), ("plugin.cpio.gz", "initramfs"))
            ],
            pushed,
            strict=True,
        )
    ]
    for each in index["manifests"]:
        _, raw = served.repository("web").manifests[each["digest"]]
        assert len(raw) == each["size"]
    requests_of(served)
    again = push(paths, f"{served.host}/web:1", session=session)
    assert sum(each.sent for each in again) == 0
    assert requests_of(served).count("HEAD blobs") <= 4 * 3


def test_whole(web: Path, served: OciRegistry, session: Session) -> None:
    [pushed] = push(web, f"{served.host}/web:1", whole=True, session=session)
    manifest = served.manifest("web", "1")
    [layer] = manifest["layers"]
    assert layer["digest"] == str(pushed.digest)
    assert layer["annotations"] == {"org.opencontainers.image.title": "web.img"}
    assert served.repository("web").blobs[layer["digest"]] == web.read_bytes()
    assert pushed.sent == pushed.size
    [again] = push(web, f"{served.host}/web:1", whole=True, session=session)
    assert again.sent == 0


def test_a_whole_erofs_image_has_the_type_of_its_format(
    tmp_path: Path, served: OciRegistry, session: Session
) -> None:
    """And in an index the feature that a host needs for it."""
    filesystem = 'type = "erofs"\ncompression = "lz4"'
    paths = [
        shipped.disk(tmp_path, "web.erofs", architecture=architecture, filesystem=filesystem)
        for architecture in ("amd64", "arm64")
    ]
    push(paths, f"{served.host}/web:1", whole=True, session=session)
    index = served.manifest("web", "1")
    assert [each["platform"]["os.features"] for each in index["manifests"]] == [["erofs"]] * 2
    _, raw = served.repository("web").manifests[index["manifests"][0]["digest"]]
    [layer] = json.loads(raw)["layers"]
    assert layer["mediaType"] == "application/vnd.erofs"
    assert layer["digest"] == str(Digest.of(paths[0].read_bytes()))
    out = tmp_path / "out"
    out.mkdir()
    name = f"{served.host}/web:1"
    [pulled] = library.pull(name, out, platform="linux/amd64", session=session)
    assert pulled.path.read_bytes() == paths[0].read_bytes()
    toml = shipped.config_of(tmp_path, "web.erofs")
    assert library.verify(paths[0], toml, session=session).equal


def test_without_documents(web: Path, served: OciRegistry, session: Session) -> None:
    for document in ("web.img.provenance.json", "web.img.manifest.json"):
        (web.parent / document).unlink()
    push(web, f"{served.host}/web:1", session=session)
    manifest = served.manifest("web", "1")
    assert manifest["config"]["mediaType"] == "application/vnd.oci.empty.v1+json"
    assert manifest["config"]["size"] == 2
    assert "com.github.volantvm.fledge.platform" not in manifest["annotations"]
    assert len(served.repository("web").manifests) == 1


@pytest.mark.parametrize("whole", [False, True])
def test_artifact_that_has_changed_since_the_build(
    whole: bool, web: Path, served: OciRegistry, session: Session
) -> None:
    with web.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    with pytest.raises(CorruptError, match="but its provenance says") as caught:
        push(web, f"{served.host}/web:1", whole=whole, session=session)
    assert "build it again" in caught.value.hint
    assert served.repository("web").manifests == {}
    assert str(Digest.of(web.read_bytes())) not in served.repository("web").blobs


def test_documents_that_are_not_of_one_build(
    web: Path, served: OciRegistry, session: Session
) -> None:
    path = web.parent / "web.img.manifest.json"
    path.write_text(path.read_text().replace("1.27", "1.28"))
    with pytest.raises(CorruptError, match="is not the plugin manifest that the provenance"):
        push(web, f"{served.host}/web:1", session=session)
    path.write_text("{}")
    with pytest.raises(CorruptError, match="is not a plugin manifest"):
        push(web, f"{served.host}/web:1", session=session)
    (web.parent / "web.img.provenance.json").write_text("{}")
    with pytest.raises(CorruptError, match="is not the provenance of a fledge build"):
        push(web, f"{served.host}/web:1", session=session)
    assert served.seen == []


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("127.0.0.1:1/web@sha256:" + "0" * 64, "names a digest"),
        ("oci:layout:1", "is not in a registry"),
        ("docker-daemon:web:1", "is not in a registry"),
        ("127.0.0.1:1/Web:1", "must be in lower case"),
    ],
)
def test_reference_that_nothing_can_be_pushed_to(
    reference: str, words: str, web: Path, session: Session
) -> None:
    with pytest.raises(ConfigError, match=words):
        push(web, reference, session=session)


@pytest.mark.parametrize("name", [".web.img", "-web.img", "we\nb.img", "w" * 201])
def test_name_that_no_pull_would_write(name: str, web: Path, session: Session) -> None:
    path = web.rename(web.with_name(name))
    with pytest.raises(ConfigError, match="a pull would not write a file of that name") as caught:
        push(path, "127.0.0.1:1/web:1", session=session)
    assert "Rename it" in caught.value.hint


def test_files_that_cannot_go_together(
    artifacts: Path, web: Path, served: OciRegistry, session: Session
) -> None:
    with pytest.raises(ConfigError, match="have the same name and platform"):
        push([artifacts / "amd64" / "web.img", web], f"{served.host}/web:1", session=session)
    plain = shipped.copy(artifacts / "amd64" / "plugin.cpio.gz", web.parent / "plain")
    (plain.parent / "plugin.cpio.gz.provenance.json").unlink()
    with pytest.raises(ConfigError, match="no provenance that says which platform"):
        push([web, plain], f"{served.host}/web:1", session=session)
    with pytest.raises(CorruptError, match="not in a known format"):
        push(web.parent / "web.img.manifest.json", f"{served.host}/web:1", session=session)
    with pytest.raises(ConfigError, match="could not be read"):
        push(web.parent / "none.img", f"{served.host}/web:1", session=session)
    assert served.seen == []


def test_container_image_under_the_tag_is_replaced(
    web: Path, served: OciRegistry, session: Session
) -> None:
    served.put("web", {"mediaType": "application/vnd.oci.image.manifest.v1+json"}, "1")
    push(web, f"{served.host}/web:1", session=session)
    assert served.manifest("web", "1")["artifactType"] == "application/vnd.fledge.artifact.v1"


def test_registry_that_takes_no_artifacts(web: Path, served: OciRegistry, session: Session) -> None:
    path = "PUT /v2/web/manifests/"
    for answer in (400, 404):
        served.answers = _Prefix(path, answer)
        with pytest.raises(NetworkError, match=f"answers {answer}") as caught:
            push(web, f"{served.host}/web:1", session=session)
        assert "takes no artifacts of this kind" in caught.value.hint


class _Prefix(dict):  # type: ignore[type-arg]
    """One answer for all paths that begin in a way."""

    def __init__(self, path: str, code: int) -> None:
        super().__init__()
        self._path, self._code = path, code

    def get(self, path: str, default: object = None) -> object:
        return status(self._code, b"no") if path.startswith(self._path) else None


@real
def test_killed_push_goes_on(web: Path, tmp_path: Path) -> None:
    with registry.serve(tmp_path / "storage") as host, registry.wire(host) as slow:
        command = [sys.executable, "-m", "fledge", "push", str(web), f"{slow.host}/web:1"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while slow.sent < 2 * CHUNK and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        before = slow.sent
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        assert slow.sent - before < PAYLOAD - CHUNK
        library.pull(f"{host}/web:1", tmp_path)
    assert (tmp_path / "web.img").read_bytes() == web.read_bytes()
