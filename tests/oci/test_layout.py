"""Images in OCI layouts: tags, platforms, and invalid layouts."""

import gzip
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import pyzstd

from fledge.errors import ConfigError, CorruptError, FledgeError
from fledge.oci.layout import open_image
from fledge.oci.manifest import CONTAINERD_NAME, REF_NAME, Platform
from fledge.session import Session
from fledge.store.cache import Cache
from tests.support import golden
from tests.support.images import (
    OCI,
    Manifest,
    descriptor,
    image,
    index,
    manifest,
    sha256,
    write_layout,
)
from tests.support.layouts import AMD64, edit, make_layout, unpacked
from tests.support.tars import file, pack


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return make_layout(tmp_path / "layout")


def entries(layout: Path) -> list[dict[str, object]]:
    listed: list[dict[str, object]] = json.loads((layout / "index.json").read_bytes())["manifests"]
    return listed


def test_the_fixture(layout: Path) -> None:
    image = open_image(layout, "hello", AMD64)
    assert image.uri == f"oci:{layout}:hello@sha256:{golden.FIXTURE_MANIFEST}"
    files = unpacked(image, Session.default().cache)
    assert files["etc/greeting"] == b"Hello from an image, built without root.\n"
    assert files["usr/bin/hello"] == files["usr/bin/greet"]
    assert "etc/obsolete" not in files


def test_the_platform_decides(layout: Path) -> None:
    arm = open_image(layout, None, Platform("linux", "arm64", "v8"))
    assert json.loads(arm.config)["architecture"] == "arm64"
    with pytest.raises(ConfigError, match="no image for linux/s390x"):
        open_image(layout, None, Platform("linux", "s390x"))


def test_a_layout_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere could not be read: no such file or folder"):
        open_image(tmp_path / "nowhere", None, AMD64)
    (tmp_path / "image.tar").touch()
    with pytest.raises(ConfigError, match="not a folder, and so not an OCI layout") as caught:
        open_image(tmp_path / "image.tar", None, AMD64)
    assert "oci-archive:FILE" in caught.value.hint


def test_tags(layout: Path) -> None:
    with pytest.raises(ConfigError, match="has no image 'other'") as caught:
        open_image(layout, "other", AMD64)
    assert caught.value.hint == f"It has oci:{layout}:hello."
    [entry] = entries(layout)
    second = {**entry, "annotations": {REF_NAME: "second"}}
    edit(layout / "index.json", manifests=[entry, second])
    # It is one image with two names.
    for tag in ("second", "hello", None):
        assert json.loads(open_image(layout, tag, AMD64).config)["architecture"] == "amd64"


LATEST = {REF_NAME: "latest"}
OLD = image(pack(file("a", b"old")))
NEW = image(pack(file("a", b"new")))
ARM = image(pack(file("a", b"arm")), architecture="arm64")
SBOM = Manifest(
    f"{OCI}.manifest.v1+json",
    json.dumps(
        {"config": descriptor("application/vnd.oci.empty.v1+json", b"{}"), "layers": []}
    ).encode(),
    (b"{}",),
)


def layout_of(folder: Path, *listed_images: tuple[Manifest, dict[str, str] | None]) -> Path:
    """A layout whose index lists images with annotations; with None, their platform and no name."""
    for number, (top, _) in enumerate(listed_images):
        write_layout(folder.with_name(f"part-{number}"), top)
        shutil.copytree(folder.with_name(f"part-{number}"), folder, dirs_exist_ok=True)
    manifests = [
        {
            **descriptor(top.media_type, top.body),
            "platform": top.platform if annotations is None else None,
            "annotations": annotations,
        }
        for top, annotations in listed_images
    ]
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))
    return folder


def called(name: str) -> dict[str, str]:
    """The annotations that Docker 25 writes for an image."""
    return {CONTAINERD_NAME: name, REF_NAME: name.rpartition(":")[2]}


def chosen(folder: Path, tag: str | None) -> bytes:
    """The content of /a in the chosen image for amd64."""
    return unpacked(open_image(folder, tag, AMD64), Session.default().cache)["a"]


def refused(folder: Path, tag: str | None) -> tuple[str, list[str]]:
    """The message and the choices that the hint offers."""
    with pytest.raises(ConfigError) as caught:
        open_image(folder, tag, AMD64)
    message = caught.value.message.removeprefix(f"oci:{folder}: ")
    hint = caught.value.hint.removeprefix("It has ").removesuffix(".")
    return message, [each.removeprefix(f"oci:{folder}:") for each in hint.split(", ")]


def test_two_images_with_the_same_tag(tmp_path: Path) -> None:
    a, b = "docker.io/library/a:latest", "docker.io/team/b:latest"
    folder = layout_of(tmp_path / "layout", (OLD, called(a)), (NEW, called(b)))
    assert refused(folder, None) == ("has more than one image", [a, b])
    assert refused(folder, "latest") == ("has more than one image 'latest'", [a, b])
    assert refused(folder, "c") == ("has no image 'c'", [a, b])
    for tag in (a, "a", "a:latest", "@0", f"sha256:{OLD.sha256}", f"a@sha256:{OLD.sha256}"):
        assert chosen(folder, tag) == b"old"
    for tag in (b, "team/b", "@1", f"sha256:{NEW.sha256}"):
        assert chosen(folder, tag) == b"new"
    assert refused(folder, "@2")[0] == "has no image '@2'"
    assert refused(folder, f"sha256:{ARM.sha256}") == (
        f"has no image 'sha256:{ARM.sha256}'",
        [a, b],
    )


def test_images_without_names(tmp_path: Path) -> None:
    folder = layout_of(tmp_path / "layout", (OLD, {}), (NEW, {}), (OLD, {}))
    assert refused(folder, None) == ("has more than one image", ["@0", "@1"])
    assert chosen(folder, "@1") == b"new"
    assert chosen(folder, "@2") == b"old"


def test_one_name_for_an_image_of_each_platform(tmp_path: Path) -> None:
    folder = layout_of(tmp_path / "layout", (ARM, LATEST), (OLD, LATEST))
    assert chosen(folder, None) == b"old"
    assert chosen(folder, "latest") == b"old"
    folder = layout_of(tmp_path / "declared", (ARM, None), (OLD, None))
    assert chosen(folder, None) == b"old"
    folder = layout_of(tmp_path / "twice", (ARM, None), (OLD, None), (NEW, None))
    assert refused(folder, None) == ("has more than one image", ["@0", "@1", "@2"])
    folder = layout_of(
        tmp_path / "none", (ARM, LATEST), (replace(ARM, body=ARM.body + b" "), LATEST)
    )
    with pytest.raises(ConfigError, match="has no image for linux/amd64") as caught:
        open_image(folder, None, AMD64)
    assert caught.value.hint == "Choose one of these with --platform: linux/arm64"


def test_the_platform_does_not_decide_between_names(tmp_path: Path) -> None:
    folder = layout_of(tmp_path / "layout", (ARM, {REF_NAME: "a"}), (OLD, {REF_NAME: "b"}))
    assert refused(folder, None) == ("has more than one image", ["a", "b"])
    both = [(ARM, {REF_NAME: "a"}), (OLD, {REF_NAME: "a"}), (ARM, LATEST), (OLD, LATEST)]
    assert chosen(layout_of(tmp_path / "both", *both), None) == b"old"


def test_artifacts_beside_an_image(tmp_path: Path) -> None:
    attestation = replace(NEW, platform={"os": "unknown", "architecture": "unknown"})
    folder = layout_of(tmp_path / "layout", (SBOM, {}), (attestation, None), (OLD, LATEST))
    assert chosen(folder, None) == b"old"
    with pytest.raises(CorruptError, match="is not a container image but"):
        open_image(folder, "@0", AMD64)


def test_an_image_inside_a_listed_index_by_its_digest(tmp_path: Path) -> None:
    folder = layout_of(tmp_path / "layout", (index(OLD, ARM), {}), (NEW, {}))
    assert refused(folder, None) == ("has more than one image", ["@0", "@1"])
    assert chosen(folder, "@0") == b"old"
    assert chosen(folder, f"sha256:{OLD.sha256}") == b"old"
    with pytest.raises(ConfigError, match="is an image for linux/arm64, not for linux/amd64"):
        open_image(folder, f"sha256:{ARM.sha256}", AMD64)
    unsaid = [replace(each, platform={}) for each in (OLD, NEW)]
    folder = layout_of(tmp_path / "unsaid", (index(*unsaid), {}))
    with pytest.raises(ConfigError, match="linux/amd64, and 2 without a platform") as caught:
        open_image(folder, None, AMD64)
    assert caught.value.hint == (
        f"Choose one by its digest: sha256:{OLD.sha256}, sha256:{NEW.sha256}"
    )


@pytest.mark.slow
def test_a_list_of_very_many_images_is_refused_soon(tmp_path: Path) -> None:
    folder = layout_of(tmp_path / "layout", (OLD, LATEST), (NEW, LATEST))
    entry = {**descriptor(OLD.media_type, OLD.body), "annotations": LATEST}
    many = [{**entry, "digest": f"sha256:{number:064}"} for number in range(15_000)]
    edit(folder / "index.json", manifests=many)
    started = time.monotonic()
    message, offered = refused(folder, "latest")
    assert time.monotonic() - started < 5
    assert message == "has more than one image 'latest'"
    assert offered[0] == "@0"
    assert offered[-1] == "@19 and 14980 more"


def test_what_is_no_layout(tmp_path: Path, layout: Path) -> None:
    with pytest.raises(ConfigError, match="is not an OCI layout"):
        open_image(tmp_path, None, AMD64)
    edit(layout / "index.json", manifests=[])
    with pytest.raises(ConfigError, match="has no image"):
        open_image(layout, None, AMD64)
    (layout / "index.json").write_text("{")
    with pytest.raises(CorruptError, match=r"index\.json: is not JSON"):
        open_image(layout, None, AMD64)


def test_every_blob_that_is_missing_or_changed_is_noticed(layout: Path) -> None:
    used = 0
    for blob in sorted((layout / "blobs" / "sha256").iterdir()):
        good = blob.read_bytes()
        for bad in (None, good[:-1], bytes([good[0] ^ 1]) + good[1:]):
            if bad is None:
                blob.unlink()
            else:
                blob.write_bytes(bad)
            try:
                unpacked(open_image(layout, None, AMD64), Cache(layout / "cache" / str(used)))
            except CorruptError:
                used += 1
            blob.write_bytes(good)
    # Index, manifest, config and two layers; not manifest and config for arm64.
    assert used == 3 * 5


def test_a_blob_that_is_no_file(layout: Path) -> None:
    digest = str(entries(layout)[0]["digest"]).removeprefix("sha256:")
    (layout / "blobs" / "sha256" / digest).unlink()
    (layout / "blobs" / "sha256" / digest).mkdir()
    with pytest.raises(FledgeError, match="not a regular file"):
        open_image(layout, None, AMD64)


@pytest.mark.parametrize("kind", ["application/octet-stream", "", None])
def test_the_bytes_decide_where_types_are_missing(tmp_path: Path, kind: str | None) -> None:
    tar = pack(file("a", b"content"))
    for layer in (tar, gzip.compress(tar), pyzstd.compress(tar)):
        entry = {**descriptor("", layer), "mediaType": kind}
        top = manifest([entry], [sha256(tar)], [layer])
        config = {**descriptor("", top.blobs[0]), "mediaType": kind}
        body = json.dumps({**json.loads(top.body), "config": config}).encode()
        write_layout(tmp_path / "layout", replace(top, body=body))
        image = open_image(tmp_path / "layout", None, AMD64)
        assert unpacked(image, Cache(tmp_path / sha256(layer))) == {"a": b"content"}


def test_an_artifact_without_a_type_is_no_image(tmp_path: Path) -> None:
    content = b"{}"
    listed = {"config": descriptor("application/json", content), "layers": []}
    body = json.dumps({"schemaVersion": 2, **listed}).encode()
    write_layout(tmp_path / "layout", Manifest(f"{OCI}.manifest.v1+json", body, (content,)))
    with pytest.raises(CorruptError, match="config: is not that of a container image"):
        open_image(tmp_path / "layout", None, AMD64)
