"""Artifacts from a registry: what a pull writes, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

import fledge as library
from fledge.errors import ConfigError, CorruptError, FledgeError, NetworkError, OfflineError
from fledge.host.settings import Settings
from fledge.operations.pull import Pulled, pull
from fledge.operations.push import push
from fledge.report import Reporter
from fledge.session import Session
from fledge.store.cache import Cache
from tests.support import bounded, oci_registry, shipped
from tests.support.httpd import Exchange, Server, redirect, status
from tests.support.oci_registry import OciRegistry
from tests.support.shipped import CHUNK, PAYLOAD, noise

pytestmark = pytest.mark.slow

real = pytest.mark.real

PREFIX = "com.github.volantvm.fledge."
TITLE = "org.opencontainers.image.title"


class Notes(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def session(tmp_path: Path, notes: Notes) -> Session:
    return Session(Settings(os.environ), Cache(tmp_path / "cache"), notes, backoff=0)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder to pull to."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def only(pulled: list[Pulled]) -> Pulled:
    [one] = pulled
    return one


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", ["web.img", "plugin.cpio.gz"])
def test_round_trip(
    name: str, whole: bool, artifacts: Path, served: OciRegistry, session: Session, out: Path
) -> None:
    source = artifacts / "amd64" / name
    [pushed] = push(source, f"{served.host}/team/web:1", whole=whole, session=session)
    pulled = only(pull(f"{served.host}/team/web:1", out, session=session))
    assert pulled.path == out / name
    assert pulled.path.read_bytes() == source.read_bytes()
    # Short holes are filled.
    assert pulled.path.stat().st_blocks * 512 <= source.stat().st_blocks * 512 + (1 << 19)
    assert (pulled.reference, pulled.digest, pulled.size) == (
        pushed.reference,
        pushed.digest,
        pushed.size,
    )
    statement = f"{name}.provenance.json"
    assert (out / statement).read_bytes() == source.with_name(statement).read_bytes()
    assert pulled.provenance
    assert pulled.plugin_manifest == (name == "web.img")
    expected = {name, statement, *(["web.img.manifest.json"] if pulled.plugin_manifest else [])}
    assert set(os.listdir(out)) == expected
    shutil.copytree(shipped.config_of(artifacts, name).parent, out / "project", dirs_exist_ok=True)
    assert library.verify(pulled.path, out / "project" / "fledge.toml", session=session).equal


def test_by_digest(web: Path, served: OciRegistry, session: Session, out: Path) -> None:
    [pushed] = push(web, f"{served.host}/web:1", session=session)
    digest = pushed.reference.partition("@")[2]
    pull(f"{served.host}/web@{digest}", out, session=session)
    assert (out / "web.img").read_bytes() == web.read_bytes()


def test_manifest_says_where_the_artifact_is_now(
    web: Path, served: OciRegistry, session: Session, out: Path
) -> None:
    push(web, f"{served.host}/web:1", session=session)
    pull(f"{served.host}/web:1", out, session=session)
    before = json.loads((web.parent / "web.img.manifest.json").read_bytes())
    after = json.loads((out / "web.img.manifest.json").read_bytes())
    assert after["rootfs"].pop("url") == str(out / "web.img")
    assert before["rootfs"].pop("url") != str(out / "web.img")
    assert after == before
    # What was pulled can be pushed.
    assert only_reference(push(out / "web.img", f"{served.host}/web:2", session=session))
    (out / "again").mkdir()
    pull(f"{served.host}/web:2", out / "again", session=session)
    again = json.loads((out / "again" / "web.img.manifest.json").read_bytes())
    assert again["rootfs"]["url"] == str(out / "again" / "web.img")


def only_reference(pushed: list[library.Pushed]) -> str:
    [one] = pushed
    return one.reference


def test_manifest_with_an_address_stays(
    tmp_path: Path, served: OciRegistry, session: Session, out: Path
) -> None:
    source = shipped.disk(tmp_path, table='url = "https://plugins.example.org/web.img"')
    push(source, f"{served.host}/web:1", session=session)
    pull(f"{served.host}/web:1", out, session=session)
    text = source.with_name("web.img.manifest.json").read_bytes()
    assert (out / "web.img.manifest.json").read_bytes() == text


ALL = [("amd64", "web.img"), ("amd64", "plugin.cpio.gz"), ("arm64", "web.img")]


@pytest.fixture
def index(artifacts: Path, served: OciRegistry, session: Session) -> str:
    """The name of an index: two artifacts for amd64, one for arm64."""
    name = f"{served.host}/web:1"
    push([artifacts.joinpath(*each) for each in ALL], name, session=session)
    return name


@pytest.mark.parametrize(
    ("platform", "architecture", "names"),
    [
        ("linux/amd64", "amd64", ["web.img", "plugin.cpio.gz"]),
        ("arm64", "arm64", ["web.img"]),
        ("linux/arm64/v8", "arm64", ["web.img"]),
    ],
)
def test_index(
    platform: str,
    architecture: str,
    names: list[str],
    index: str,
    artifacts: Path,
    session: Session,
    out: Path,
) -> None:
    pulled = pull(index, out, platform=platform, session=session)
    assert [each.path.name for each in pulled] == names
    for each in pulled:
        assert each.path.read_bytes() == (artifacts / architecture / each.path.name).read_bytes()


def test_index_without_the_platform(index: str, session: Session, out: Path) -> None:
    with pytest.raises(ConfigError, match="has no artifact for linux/riscv64") as caught:
        pull(index, out, platform="linux/riscv64", session=session)
    assert "with --platform: linux/amd64, linux/arm64" in caught.value.hint
    assert os.listdir(out) == []


def test_single_artifact_of_another_platform(
    artifacts: Path, served: OciRegistry, session: Session, out: Path, notes: Notes
) -> None:
    name = f"{served.host}/web:1"
    push(artifacts / "arm64" / "web.img", name, session=session)
    with pytest.raises(ConfigError, match="is for linux/arm64, not for linux/amd64") as caught:
        pull(name, out, platform="amd64", session=session)
    assert "--platform linux/arm64" in caught.value.hint
    pull(name, out, platform="arm64", session=session)
    pull(name, out, session=session)
    assert [note for note in notes.notes if "is for linux/arm64, and this machine is" in note]


def test_missing_tag(web: Path, served: OciRegistry, session: Session, out: Path) -> None:
    push(web, f"{served.host}/web:1.0", session=session)
    with pytest.raises(NetworkError, match=r"has no '1\.1'") as caught:
        pull(f"{served.host}/web:1.1", out, session=session)
    assert "1.0" in caught.value.hint


def test_container_image(served: OciRegistry, session: Session, out: Path) -> None:
    config = served.put_blob("web", b"{}", "application/vnd.oci.image.config.v1+json")
    image = {"mediaType": oci_registry.MANIFEST, "config": config, "layers": []}
    digest = served.put("web", image, "image")
    platform = {"os": "linux", "architecture": "amd64"}
    entry = {"mediaType": oci_registry.MANIFEST, "digest": digest, "size": 0, "platform": platform}
    entry["size"] = len(served.repository("web").manifests[digest][1])
    served.put("web", {"mediaType": oci_registry.INDEX, "manifests": [entry]}, "index")
    for tag in ("image", "index"):
        with pytest.raises(CorruptError, match="is a container image") as caught:
            pull(f"{served.host}/web:{tag}", out, platform="amd64", session=session)
        assert "[source] image" in caught.value.hint


def test_cached_chunks_are_not_fetched(
    web: Path, stocked: OciRegistry, session: Session, out: Path
) -> None:
    pull(f"{stocked.host}/web:1", out, session=session)
    stocked.seen.clear()
    pull(f"{stocked.host}/web:1", out, session=session)
    assert [each.path for each in stocked.seen if "/blobs/" in each.path] == []
    # A new version shares most chunks.
    with web.open("r+b") as file:
        file.seek(web.read_bytes().index(noise(PAYLOAD)[:4096]) + 2 * CHUNK)
        file.write(b"changed")
    for document in ("web.img.provenance.json", "web.img.manifest.json"):
        (web.parent / document).unlink()
    push(web, f"{stocked.host}/web:1", session=session)
    stocked.seen.clear()
    pull(f"{stocked.host}/web:1", out, session=session)
    assert len([each for each in stocked.seen if "/blobs/" in each.path]) == 1
    assert (out / "web.img").read_bytes() == web.read_bytes()


def test_offline(
    web: Path, served: OciRegistry, session: Session, out: Path, tmp_path: Path, notes: Notes
) -> None:
    [pushed] = push(web, f"{served.host}/web:1", session=session)
    reference = f"{served.host}/web@{pushed.reference.partition('@')[2]}"
    offline = shipped.session(tmp_path, notes, offline=True)
    with pytest.raises(OfflineError, match="is not in the cache"):
        pull(reference, out, session=offline)
    pull(reference, out, session=session)
    served.seen.clear()
    for path in list(out.iterdir()):
        path.unlink()
    pulled = only(pull(reference, out, session=offline))
    assert served.seen == []
    assert (out / "web.img").read_bytes() == web.read_bytes()
    assert (pulled.provenance, pulled.plugin_manifest) == (False, True)
    assert notes.notes == ["web.img: its provenance cannot be looked up offline"]
    with pytest.raises(OfflineError, match="the tag cannot be looked up offline") as caught:
        pull(f"{served.host}/web:1", out, session=offline)
    assert "@sha256:HEX" in caught.value.hint


def test_older_artifact_is_replaced(
    web: Path, artifacts: Path, served: OciRegistry, session: Session, out: Path
) -> None:
    for architecture in ("arm64", "amd64"):
        name = f"{served.host}/web:{architecture}"
        push(artifacts / architecture / "web.img", name, session=session)
        pull(name, out, platform=architecture, session=session)
        assert (out / "web.img").read_bytes() == (artifacts / architecture / "web.img").read_bytes()
    assert len(os.listdir(out)) == 3


@pytest.mark.parametrize("name", ["web.img", "web.img.manifest.json", "web.img.provenance.json"])
def test_file_that_is_something_else_is_not_replaced(
    name: str, stocked: OciRegistry, session: Session, out: Path
) -> None:
    (out / name).write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match="so a pull does not replace it") as caught:
        pull(f"{stocked.host}/web:1", out, session=session)
    assert name in caught.value.message
    assert "another folder with -o" in caught.value.hint
    assert os.listdir(out) == [name]
    assert (out / name).read_text() == '{"mine": 1}'


def test_documents_that_stay(
    web: Path, stocked: OciRegistry, session: Session, out: Path, notes: Notes
) -> None:
    pull(f"{stocked.host}/web:1", out, session=session)
    for document in ("web.img.provenance.json", "web.img.manifest.json"):
        (web.parent / document).unlink()
    push(web, f"{stocked.host}/web:1", session=session)
    pull(f"{stocked.host}/web:1", out, session=session)
    assert {each.partition(" ")[0] for each in notes.notes} == {
        str(out / "web.img.provenance.json"),
        str(out / "web.img.manifest.json"),
    }


@pytest.mark.parametrize(
    ("folder", "words"),
    [("none", "none is not a folder"), ("file", "file is not a folder")],
)
def test_folder_that_cannot_be(
    folder: str, words: str, stocked: OciRegistry, session: Session, out: Path
) -> None:
    (out / "file").touch()
    with pytest.raises(ConfigError, match=words) as caught:
        pull(f"{stocked.host}/web:1", out / folder, session=session)
    assert "with -o." in caught.value.hint


def test_lost_chunk(web: Path, stocked: OciRegistry, session: Session, out: Path) -> None:
    layers = stocked.manifest("web", "1")["layers"]
    layer = layers[full(stocked.manifest("web", "1"))]
    del stocked.repository("web").blobs[layer["digest"]]
    with pytest.raises(NetworkError, match="does not have chunk") as caught:
        pull(f"{stocked.host}/web:1", out, session=session)
    number = int(layer["annotations"][f"{PREFIX}offset"]) // CHUNK + 1
    assert f"chunk {number} of " in caught.value.message
    assert layer["digest"] in caught.value.message
    assert caught.value.hint == "It is incomplete there: push it again."
    assert os.listdir(out) == []
    push(web, f"{stocked.host}/web:1", session=session)
    pull(f"{stocked.host}/web:1", out, session=session)


# What a hostile registry, or whoever pushed to it, can do.


Manifest = dict[str, Any]


def full(manifest: Manifest) -> int:
    """Return the number of the first of several chunks that do not compress."""
    return next(n for n, each in enumerate(manifest["layers"]) if each["size"] > CHUNK)


def annotate(**changes: str | None) -> Callable[[Manifest], None]:
    """Return a function that changes annotations of a manifest; None removes one."""

    def change(manifest: Manifest) -> None:
        for name, value in changes.items():
            key = TITLE if name == "title" else PREFIX + name.replace("_", "-")
            if value is None:
                del manifest["annotations"][key]
            else:
                manifest["annotations"][key] = value

    return change


def of_layer(number: int, **changes: Any) -> Callable[[Manifest], None]:
    """Return a function that changes a layer; ``offset`` and ``raw`` are its annotations."""

    def change(manifest: Manifest) -> None:
        layer = manifest["layers"][number if number < 0 else full(manifest) + number]
        for key, value in changes.items():
            if key in ("offset", "raw"):
                name = {"offset": "offset", "raw": "digest"}[key]
                layer["annotations"][PREFIX + name] = value
            else:
                layer[key] = value

    return change


def swapped(manifest: Manifest) -> None:
    layers, at = manifest["layers"], full(manifest)
    layers[at], layers[at + 1] = layers[at + 1], layers[at]


def doubled(manifest: Manifest) -> None:
    manifest["layers"].insert(1, manifest["layers"][1])


def dropped(manifest: Manifest) -> None:
    del manifest["layers"][full(manifest)]


def exchanged(manifest: Manifest) -> None:
    """The content of one chunk in place of another."""
    first, second = manifest["layers"][full(manifest) :][:2]
    first["digest"], first["size"] = second["digest"], second["size"]


def exchanged_with_digest(manifest: Manifest) -> None:
    exchanged(manifest)
    first, second = manifest["layers"][full(manifest) :][:2]
    first["annotations"][f"{PREFIX}digest"] = second["annotations"][f"{PREFIX}digest"]


def many_layers(manifest: Manifest) -> None:
    manifest["layers"] = [{}] * 1_000_000


NAMES = [
    "../x",
    "a/b",
    "/etc/x",
    ".bashrc",
    "..",
    ".",
    "",
    "-rf",
    "a\nb",
    "a\x1b[2J",
    "a\u202eb",
    "x" * 201,
    "é" * 101,
    "a\0b",
    "\ud800",
]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *(pytest.param(annotate(title=name), "title", id=f"name {name[:9]!a}") for name in NAMES),
        (annotate(title=None), "title"),
        (annotate(digest=None), "digest"),
        (annotate(digest="sha256:" + "0" * 64), "but its manifest says|of another artifact"),
        (annotate(digest="md5:0"), "is not a sha256 digest"),
        (annotate(size="1099511627776"), "size is not a whole number up to"),
        (annotate(size="-1"), "size is not a whole number"),
        (annotate(size="٣"), "size is not a whole number"),
        (annotate(size="9" * 5000), "size is not a whole number"),
        (annotate(size=str(CHUNK)), "not of this file"),
        (annotate(size="76000000"), "but its manifest says|other content"),
        (annotate(chunk_size="0"), "is not a size of chunks"),
        (annotate(chunk_size="1000"), "is not a size of chunks"),
        (annotate(chunk_size="4096"), "larger than it can be"),
        (annotate(chunk_size=str(2 * CHUNK)), "not in order|other content"),
        (annotate(chunk_size=str(1 << 24)), "is not a whole number up to"),
        (annotate(platform="so/many/parts/here"), "platform"),
        (annotate(platform="linux/arm64"), ""),
        (of_layer(1, offset="1"), "not in order"),
        (of_layer(1, offset="274877906944"), "is not a whole number"),
        (of_layer(-1, offset="68719476736"), "not of this file"),
        (of_layer(1, raw="sha256:" + "0" * 64), "other content than the manifest says"),
        (of_layer(1, size=1 << 39), "larger than it can be"),
        (of_layer(1, size=1000), "has more than|more than"),
        (of_layer(1, size=CHUNK + CHUNK // 9), "larger than it can be|but its manifest says"),
        (of_layer(1, size=-1), "size"),
        (of_layer(1, mediaType="application/vnd.fledge.chunk.v2"), "mediaType is not"),
        (of_layer(1, annotations=None), "annotations"),
        (swapped, "not in order"),
        (doubled, "not in order"),
        (dropped, "but its manifest says"),
        (exchanged, "other content than the manifest says"),
        (exchanged_with_digest, "but its manifest says"),
        (many_layers, "has more than 8192 entries"),
    ],
)
def test_manifest_that_lies(
    change: Callable[[Manifest], None],
    words: str,
    web: Path,
    stocked: OciRegistry,
    session: Session,
    out: Path,
) -> None:
    manifest = stocked.manifest("web", "1")
    change(manifest)
    stocked.put("web", manifest, "lie")
    try:
        pulled = pull(f"{stocked.host}/web:lie", out, session=session)
    except (CorruptError, NetworkError) as error:
        assert words
        assert re.search(words, error.message), error.message
        assert error.message.isprintable()
        assert os.listdir(out) == []
    else:
        assert not words
        assert only(pulled).path.read_bytes() == web.read_bytes()


def packed(data: bytes, size: int = -1) -> bytes:
    """Compress as one frame; ``size`` is the content size to claim, and -1 the true one."""
    if size < 0:
        return zstandard.compress(data)
    compressor = zstandard.ZstdCompressor().compressobj(size=len(data))
    frame = bytearray(compressor.compress(data) + compressor.flush())
    parameters = zstandard.get_frame_parameters(bytes(frame))
    assert parameters.content_size == len(data) >= 1 << 16
    frame[frame.index(len(data).to_bytes(4, "little")) :][:4] = b""
    at = bytes(frame).index(len(data).to_bytes(4, "little"))
    frame[at : at + 4] = size.to_bytes(4, "little")
    return bytes(frame)


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        pytest.param(lambda raw: packed(bytes(64 << 20)), "another size", id="more"),
        pytest.param(lambda raw: packed(bytes(1 << 30), CHUNK), "damaged|another size", id="bomb"),
        pytest.param(lambda raw: packed(raw[: CHUNK // 2]), "another size", id="less"),
        pytest.param(
            lambda raw: packed(raw[: CHUNK // 2], CHUNK),
            "damaged|another size",
            id="less than said",
        ),
        pytest.param(lambda raw: raw[:1000], "damaged", id="no frame"),
        pytest.param(lambda raw: packed(raw)[:-9], "damaged|another size", id="cut"),
        pytest.param(lambda raw: b"", "another size", id="empty"),
        pytest.param(lambda raw: packed(bytes(CHUNK)), "other content", id="zeros"),
    ],
)
def test_chunk_that_lies(
    blob: Callable[[bytes], bytes],
    words: str,
    stocked: OciRegistry,
    session: Session,
    out: Path,
) -> None:
    manifest = stocked.manifest("web", "1")
    layer = manifest["layers"][full(manifest)]
    raw = zstandard.decompress(stocked.repository("web").blobs[layer["digest"]])
    layer |= stocked.put_blob("web", blob(raw), layer["mediaType"])
    stocked.put("web", manifest, "lie")
    reference = f"{stocked.host}/web:lie"

    def attempt() -> str:
        with pytest.raises(CorruptError, match=words) as caught:
            pull(reference, out, session=session)
        return caught.value.message

    message, memory = bounded.in_a_child(attempt, 20)
    number = int(layer["annotations"][f"{PREFIX}offset"]) // CHUNK + 1
    assert message.startswith(f"web.img: chunk {number} of ")
    assert memory < 100 << 20
    assert os.listdir(out) == []


SKIPPED = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
"""A frame that decompressors skip (RFC 8878, section 3.1.2)."""


@pytest.mark.parametrize("start", [b"", SKIPPED])
def test_frame_that_does_not_say_its_size(
    start: bytes, web: Path, stocked: OciRegistry, session: Session, out: Path
) -> None:
    """Other compressors leave it out."""
    manifest = stocked.manifest("web", "1")
    layer = manifest["layers"][full(manifest)]
    raw = zstandard.decompress(stocked.repository("web").blobs[layer["digest"]])
    blob = start + zstandard.ZstdCompressor(write_content_size=False).compress(raw)
    layer |= stocked.put_blob("web", blob, layer["mediaType"])
    stocked.put("web", manifest, "other")
    pull(f"{stocked.host}/web:other", out, session=session)
    assert (out / "web.img").read_bytes() == web.read_bytes()


PARTS = ["tag", "manifest", "config", "chunk", "statement", "its manifest"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("longer", [0, 1, 30 << 20])
def test_bytes_that_are_others(
    part: str, longer: int, artifacts: Path, served: OciRegistry, session: Session, out: Path
) -> None:
    """Nothing is written, whichever part has other bytes than its digest, and whatever length."""
    paths = [artifacts.joinpath(*each) for each in ALL]
    push(paths, f"{served.host}/web:1", session=session)
    entry = served.manifest("web", "1")["manifests"][0]
    manifest = served.manifest("web", entry["digest"])
    own = served.repository("web")
    [(referrer, document)] = [
        (digest, json.loads(raw))
        for digest, (_, raw) in own.manifests.items()
        if json.loads(raw).get("subject", {}).get("digest") == entry["digest"]
    ]
    digest = {
        "tag": own.tags["1"],
        "manifest": entry["digest"],
        "config": manifest["config"]["digest"],
        "chunk": manifest["layers"][full(manifest)]["digest"],
        "statement": document["layers"][0]["digest"],
        "its manifest": referrer,
    }[part]
    true = own.blobs.get(digest) or own.manifests[digest][1]
    served.lies[digest] = b"{" + bytes(len(true) - 1 + longer)
    reference = f"{served.host}/web@{digest}" if part == "tag" else f"{served.host}/web:1"
    with pytest.raises(FledgeError) as caught:
        pull(reference, out, platform="amd64", session=session)
    assert caught.value.exit_code in (3, 4)
    assert caught.value.message.isprintable()
    assert os.listdir(out) == []


def test_index_that_is_an_index_of_indexes(
    index: str, served: OciRegistry, session: Session, out: Path
) -> None:
    inner = served.repository("web").tags["1"]
    raw = served.repository("web").manifests[inner][1]
    entry = {"mediaType": oci_registry.INDEX, "digest": inner, "size": len(raw)}
    entry["platform"] = {"os": "linux", "architecture": "amd64"}
    served.put("web", {"mediaType": oci_registry.INDEX, "manifests": [entry]}, "2")
    with pytest.raises(CorruptError, match="an index in an index"):
        pull(f"{served.host}/web:2", out, platform="amd64", session=session)
    served.put("web", {"mediaType": oci_registry.INDEX, "manifests": [entry] * 65}, "3")
    with pytest.raises(CorruptError, match="more than 64 entries"):
        pull(f"{served.host}/web:3", out, platform="amd64", session=session)
    twice = served.manifest("web", inner)
    twice["manifests"][1] = twice["manifests"][0]
    served.put("web", twice, "4")
    with pytest.raises(CorruptError, match="two artifacts of the same name"):
        pull(f"{served.host}/web:4", out, platform="amd64", session=session)
    del twice["manifests"][1]["platform"], twice["manifests"][2]
    served.put("web", twice, "5")
    with pytest.raises(ConfigError, match="has no artifact for linux/amd64"):
        pull(f"{served.host}/web:5", out, platform="amd64", session=session)


@pytest.mark.parametrize(
    "text",
    [b"{}", b"not JSON", b'{"rootfs": 1}', b"[" * 100_000, b"\xff", b"null"],
)
def test_config_that_is_no_plugin_manifest(
    text: bytes, stocked: OciRegistry, session: Session, out: Path
) -> None:
    manifest = stocked.manifest("web", "1")
    manifest["config"] |= stocked.put_blob("web", text, manifest["config"]["mediaType"])
    stocked.put("web", manifest, "lie")
    with pytest.raises(CorruptError, match="is not a plugin manifest"):
        pull(f"{stocked.host}/web:lie", out, session=session)
    manifest["config"] |= stocked.put_blob("web", bytes(2 << 20), manifest["config"]["mediaType"])
    stocked.put("web", manifest, "lie")
    with pytest.raises(CorruptError, match="more than the 1048576 bytes allowed"):
        pull(f"{stocked.host}/web:lie", out, session=session)


def test_plugin_manifest_of_another_artifact(
    artifacts: Path, stocked: OciRegistry, session: Session, out: Path
) -> None:
    push(artifacts / "arm64" / "web.img", f"{stocked.host}/web:2", session=session)
    manifest = stocked.manifest("web", "1")
    manifest["config"] = stocked.manifest("web", "2")["config"]
    stocked.put("web", manifest, "lie")
    with pytest.raises(CorruptError, match="the plugin manifest is that of another artifact"):
        pull(f"{stocked.host}/web:lie", out, session=session)


def attach(served: OciRegistry, tag: str, text: bytes, layers: int = 1) -> None:
    """Attach a statement to what a tag stands for."""
    subject = served.repository("web").tags[tag]
    raw = served.repository("web").manifests[subject][1]
    blob = served.put_blob("web", text, "application/vnd.in-toto+json")
    served.put(
        "web",
        {
            "mediaType": oci_registry.MANIFEST,
            "artifactType": "application/vnd.in-toto+json",
            "config": served.put_blob("web", b"{}", "application/vnd.oci.empty.v1+json"),
            "layers": [blob] * layers,
            "subject": {"mediaType": oci_registry.MANIFEST, "digest": subject, "size": len(raw)},
        },
    )


def test_statements_of_others_are_passed_over(
    web: Path, artifacts: Path, stocked: OciRegistry, session: Session, out: Path
) -> None:
    other = (artifacts / "arm64" / "web.img.provenance.json").read_bytes()
    own = (web.parent / "web.img.provenance.json").read_bytes()
    for text in (b"{}", b"not JSON", b"[" * 100_000, other, bytes(25 << 20)):
        attach(stocked, "1", text)
    attach(stocked, "1", own, layers=2)
    stocked.page = 3
    pull(f"{stocked.host}/web:1", out, session=session)
    assert (out / "web.img.provenance.json").read_bytes() == own


def test_thousands_of_referrers(stocked: OciRegistry, session: Session, out: Path) -> None:
    for number in range(1500):
        attach(stocked, "1", b"%d" % number)
    stocked.page = 100
    stocked.seen.clear()
    pull(f"{stocked.host}/web:1", out, session=session)
    assert (out / "web.img").exists()
    assert len(stocked.seen) < 100


def test_list_without_end(stocked: OciRegistry, session: Session, out: Path) -> None:
    digest = stocked.repository("web").tags["1"]
    path = f"/v2/web/referrers/{digest}"
    body = json.dumps({"manifests": []}).encode()
    headers = {"Link": f'<{path}?page=next>; rel="next"'}
    stocked.answers[f"GET {path}"] = status(200, body, headers)
    with pytest.raises(NetworkError, match="a list of more than 100 pages"):
        pull(f"{stocked.host}/web:1", out, session=session)
    assert os.listdir(out) == []


@pytest.mark.parametrize("link", ["http://127.0.0.1:9/v2/web/x", "//127.0.0.1:9/x", "/v2/other/x"])
def test_page_elsewhere(link: str, stocked: OciRegistry, session: Session, out: Path) -> None:
    digest = stocked.repository("web").tags["1"]
    body = json.dumps({"manifests": []}).encode()
    answer = status(200, body, {"Link": f'<{link}>; rel="next"'})
    stocked.answers[f"GET /v2/web/referrers/{digest}"] = answer
    with pytest.raises(NetworkError, match="the next page of a list is at"):
        pull(f"{stocked.host}/web:1", out, session=session)


def test_chunks_elsewhere(stocked: OciRegistry, session: Session, out: Path) -> None:
    """A redirect of a chunk to where it is stored is followed, one to a file is not."""
    manifest = stocked.manifest("web", "1")
    layer = manifest["layers"][full(manifest)]
    path = f"/v2/web/blobs/{layer['digest']}"
    with Server() as store:
        store.answers["/stored"] = status(200, stocked.repository("web").blobs[layer["digest"]])
        stocked.answers[f"GET {path}"] = redirect(store.url("/stored"))
        pull(f"{stocked.host}/web:1", out, session=session)
    (out / "web.img").unlink()
    stocked.answers[f"GET {path}"] = redirect("file:///etc/passwd")
    shutil.rmtree(session.cache.root)
    with pytest.raises(NetworkError, match="neither http nor https"):
        pull(f"{stocked.host}/web:1", out, session=session)


def test_mirror(
    web: Path,
    stocked: OciRegistry,
    session: Session,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    notes: Notes,
) -> None:
    """A mirror that has not all: no list of referrers, and not every chunk."""
    with OciRegistry(has_referrers=False).serve() as mirror:
        copied = mirror.repository("copies/web")
        origin = stocked.repository("web")
        copied.tags, copied.manifests = dict(origin.tags), dict(origin.manifests)
        copied.blobs = dict(origin.blobs)
        monkeypatch.setenv("FLEDGE_REGISTRY_MIRRORS", f"{stocked.host}={mirror.host}/copies")
        stocked.seen.clear()
        pulled = only(pull(f"{stocked.host}/web:1", out, session=session))
        assert pulled.provenance
        assert [each.path for each in stocked.seen if "/blobs/" in each.path] == []
        shutil.rmtree(session.cache.root)
        lost = stocked.manifest("web", "1")["layers"][-1]["digest"]
        del copied.blobs[lost]
        pull(f"{stocked.host}/web:1", out, session=session)
    assert (out / "web.img").read_bytes() == web.read_bytes()
    [note] = notes.notes
    assert lost in note
    assert "; asking 127.0.0.1" in note


@pytest.mark.parametrize("command", ["push", "pull"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(
    command: str,
    number: signal.Signals,
    web: Path,
    served: OciRegistry,
    session: Session,
    out: Path,
) -> None:
    """It ends at once, with nothing but the cache left behind."""
    began = threading.Event()
    name = f"{served.host}/web:1"
    if command == "pull":
        push(web, name, session=session)
    own = served.repository("web")
    answer = served.answer

    def slowly(exchange: Exchange) -> None:
        if "/blobs/" in exchange.path and exchange.command in ("PUT", "GET"):
            began.set()
            time.sleep(1)
        answer(exchange)

    served.answer = slowly  # type: ignore[method-assign]
    arguments = [str(web), name] if command == "push" else [name, "-o", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "fledge", command, *arguments], stderr=subprocess.PIPE, text=True
    )
    assert began.wait(60)
    process.send_signal(number)
    start = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - start < 20
    assert process.returncode == -number
    assert "error: interrupted; nothing was written" in said
    assert "Traceback" not in said
    assert os.listdir(out) == []
    if command == "push":
        assert own.tags == {}


def test_server_that_says_nothing(served: OciRegistry, tmp_path: Path) -> None:
    """A server that does not answer at all is an error of the network."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        silent.close()
        with pytest.raises(NetworkError, match="refuses the connection"):
            pull(f"{host}/web:1", tmp_path, session=shipped.session(tmp_path))
