"""Images in tar files, made by tarfile, skopeo and podman."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import pyzstd

from fledge.errors import ConfigError, CorruptError
from fledge.oci import archive as archive_module
from fledge.oci import layout
from fledge.oci.archive import open_docker_archive, open_oci_archive
from fledge.oci.image import Image
from fledge.oci.manifest import Platform
from fledge.session import Session
from fledge.store.cache import Cache
from tests.support.daemons import podman_command, run, skopeo_copy
from tests.support.layouts import AMD64, make_layout, verified


def docker_archive(path: Path, tag: str | None = None, platform: Platform = AMD64) -> Image:
    return open_docker_archive(path, tag, platform, Session.default())


def oci_archive(path: Path, tag: str | None = None) -> Image:
    return open_oci_archive(path, tag, AMD64, Session.default())


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return layout.open_image(make_layout(tmp_path / "layout"), None, AMD64)


def save(path: Path, image: Image, *tags: str, compress: Callable[[bytes], bytes] = bytes) -> Path:
    """Write an archive as old ``docker save`` did, with a folder for each layer."""
    layers = [layer.blob().path.read_bytes() for layer in image.layers]
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    listed = [{"Config": "config.json", "RepoTags": list(tags) or None, "Layers": names}]
    with tarfile.open(path, "w") as archive:
        for name, content in zip(names, layers, strict=True):
            add(archive, name, compress(content))
        add(archive, "config.json", image.config)
        add(archive, "./manifest.json", json.dumps(listed).encode())
    return path


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def link(archive: tarfile.TarFile, name: str, kind: bytes, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    archive.addfile(entry)


def test_layers_are_parts_of_the_archive(tmp_path: Path, image: Image) -> None:
    path = save(tmp_path / "saved.tar", image)
    opened = docker_archive(path)
    assert {layer.blob().path for layer in opened.layers} == {path}
    assert not Session.default().cache.root.exists() or not any(
        Session.default().cache.root.rglob("*")
    )
    assert verified(opened, Session.default().cache) == verified(image, Session.default().cache)


def test_compressed_archives_and_layers(tmp_path: Path, image: Image) -> None:
    plain = save(tmp_path / "plain.tar", image)
    paths = [plain]
    for compress in (gzip.compress, lzma.compress, bz2.compress, pyzstd.compress):
        name = compress.__module__
        paths.append(save(tmp_path / f"inside-{name}.tar", image, compress=compress))
        paths.append(tmp_path / f"around-{name}.tar")
        paths[-1].write_bytes(compress(plain.read_bytes()))
    for path in paths:
        assert verified(docker_archive(path), Cache(tmp_path / path.stem)) == verified(
            image, Session.default().cache
        )


def test_an_archive_that_fledge_cannot_decompress(tmp_path: Path, image: Image) -> None:
    plain = save(tmp_path / "plain.tar", image).read_bytes()
    path = tmp_path / "saved.tar.lzma"
    path.write_bytes(lzma.compress(plain, format=lzma.FORMAT_ALONE))
    with pytest.raises(CorruptError, match=r"^docker-archive:.*compressed by lzma") as caught:
        docker_archive(path)
    assert caught.value.hint.startswith("It is not damaged")


def test_a_tag_in_any_spelling(tmp_path: Path, image: Image) -> None:
    path = save(tmp_path / "saved.tar", image, "hello:v1", "localhost/hello:v1")
    for tag in ("hello:v1", "docker.io/library/hello:v1", "localhost/hello:v1"):
        assert docker_archive(path, tag).uri == f"docker-archive:{path}:{tag}"
    with pytest.raises(ConfigError, match="has no image 'hello'") as caught:
        docker_archive(path, "hello")
    assert f"docker-archive:{path}:hello:v1" in caught.value.hint


@pytest.mark.parametrize(
    ("kind", "target"), [("SYMTYPE", "../0/layer.tar"), ("LNKTYPE", "0/layer.tar")]
)
def test_a_layer_may_be_a_link(tmp_path: Path, image: Image, kind: str, target: str) -> None:
    path = save(tmp_path / "saved.tar", image)
    with tarfile.open(path, "a") as archive:
        link(archive, "1/layer.tar", getattr(tarfile, kind), target)
    first, second = docker_archive(path).layers
    assert first.blob() == second.blob()


def test_links_lead_nowhere_else(tmp_path: Path, image: Image) -> None:
    path = save(tmp_path / "saved.tar", image)
    with tarfile.open(path, "a") as archive:
        link(archive, "0/layer.tar", tarfile.SYMTYPE, "/etc/passwd")
        link(archive, "1/layer.tar", tarfile.SYMTYPE, "layer.tar")
    first, second = docker_archive(path).layers
    with pytest.raises(CorruptError, match=r"lacks 0/layer\.tar"):
        first.blob()
    with pytest.raises(CorruptError, match="leads too far"):
        second.blob()


def test_of_two_entries_the_last_counts(tmp_path: Path, image: Image) -> None:
    path = save(tmp_path / "saved.tar", image)
    with tarfile.open(path, "a") as archive:
        add(archive, "manifest.json", b"[]")
    with pytest.raises(ConfigError, match="has no image"):
        docker_archive(path)


def test_another_platform(tmp_path: Path, image: Image) -> None:
    path = save(tmp_path / "saved.tar", image)
    with pytest.raises(ConfigError, match="for linux/amd64, not for linux/arm64"):
        docker_archive(path, None, Platform("linux", "arm64"))


def test_what_is_no_archive(tmp_path: Path, image: Image) -> None:
    with pytest.raises(ConfigError, match="could not be read: it is a folder") as folder:
        docker_archive(tmp_path)
    assert "write oci:FOLDER" in folder.value.hint
    with pytest.raises(ConfigError, match="it is a device"):
        docker_archive(Path("/dev/zero"))
    with pytest.raises(ConfigError, match=r"gone\.tar could not be read: no such file or folder"):
        docker_archive(tmp_path / "gone.tar")
    good = save(tmp_path / "saved.tar", image).read_bytes()
    with pytest.raises(ConfigError, match="is not an OCI layout"):
        oci_archive(tmp_path / "saved.tar")
    bad = tmp_path / "bad.tar"
    for content in (b"no tar" * 200, good[:700], gzip.compress(good)[:-300], good[:-20_000]):
        bad.write_bytes(content)
        with pytest.raises((CorruptError, ConfigError)) as caught:
            docker_archive(bad)
        assert str(bad) in caught.value.message


def test_an_archive_has_bounds(
    tmp_path: Path, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "saved.tar", image)
    bomb = tmp_path / "bomb.tar.gz"
    bomb.write_bytes(gzip.compress(bytes(1 << 20)))
    monkeypatch.setattr(archive_module, "MAX_ENTRIES", 3)
    monkeypatch.setattr(archive_module, "MAX_ARCHIVE_SIZE", 1 << 19)
    with pytest.raises(CorruptError, match="more than 3 entries"):
        docker_archive(path)
    with pytest.raises(CorruptError, match=r"larger than 512\.0 KiB"):
        docker_archive(bomb)
    assert not any(file.is_file() for file in Session.default().cache.root.rglob("*"))


@pytest.mark.real
def test_what_skopeo_and_podman_write(tmp_path: Path, image: Image) -> None:
    want = verified(image, Session.default().cache)
    source = f"oci:{tmp_path / 'layout'}:hello"
    skopeo_copy(source, f"docker-archive:{tmp_path / 'docker.tar'}:example.com/hello:v1")
    skopeo_copy(source, f"oci-archive:{tmp_path / 'oci.tar'}:v1")
    with podman_command() as podman:
        run(*podman, "load", "--input", tmp_path / "docker.tar")
        saved = tmp_path / "podman.tar"
        run(*podman, "save", "--output", saved, "example.com/hello:v1")
    for opened in (
        docker_archive(tmp_path / "docker.tar"),
        docker_archive(tmp_path / "docker.tar", "example.com/hello:v1"),
        docker_archive(saved),
        oci_archive(tmp_path / "oci.tar"),
        oci_archive(tmp_path / "oci.tar", "v1"),
    ):
        assert verified(opened, Session.default().cache) == want


@pytest.mark.parametrize("layers", [{}, {"Layers": None}, {"Layers": []}])
def test_an_image_from_scratch(tmp_path: Path, layers: dict[str, object]) -> None:
    config = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers"}}
    with tarfile.open(tmp_path / "saved.tar", "w") as archive:
        add(archive, "config.json", json.dumps(config).encode())
        add(archive, "manifest.json", json.dumps([{"Config": "config.json", **layers}]).encode())
    assert docker_archive(tmp_path / "saved.tar").layers == ()


def test_several_images_of_one_tag_or_none(tmp_path: Path) -> None:
    listed = []
    with tarfile.open(tmp_path / "saved.tar", "w") as archive:
        for number, tags in enumerate([["app:latest", "app:v1"], ["app:latest"], None]):
            config = {"os": "linux", "architecture": "amd64", "rootfs": {}, "author": str(number)}
            add(archive, f"{number}.json", json.dumps(config).encode())
            listed.append({"Config": f"{number}.json", "RepoTags": tags, "Layers": []})
        add(archive, "manifest.json", json.dumps(listed).encode())
    path = tmp_path / "saved.tar"
    for tag, message in [
        (None, "has 3 images"),
        ("app", "has 2 images 'app'"),
        ("@3", "has no image '@3'"),
    ]:
        with pytest.raises(ConfigError, match=message) as caught:
            docker_archive(path, tag)
        uri = f"docker-archive:{path}"
        assert caught.value.hint == f"It has {uri}:app:v1, {uri}:@1, {uri}:@2."
    for number, tag in enumerate(["app:v1", "@1", "@2"]):
        assert json.loads(docker_archive(path, tag).config)["author"] == str(number)
