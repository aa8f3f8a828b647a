"""Images in OCI layouts: tags, platforms, and invalid layouts."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import pyzstd

from fledge.errors import ConfigError, CorruptError, FledgeError
from fledge.oci.layout import open_image
from fledge.oci.manifest import REF_NAME, Platform
from fledge.session import Session
from fledge.store.cache import Cache
from tests.support import golden
from tests.support.images import OCI, Manifest, descriptor, manifest, sha256, write_layout
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


def test_tags(layout: Path) -> None:
    with pytest.raises(ConfigError, match="has no image 'other'") as caught:
        open_image(layout, "other", AMD64)
    assert caught.value.hint == f"It has oci:{layout}:hello."
    [entry] = entries(layout)
    second = {**entry, "annotations": {REF_NAME: "second"}}
    edit(layout / "index.json", manifests=[entry, second])
    with pytest.raises(ConfigError, match="more than one image") as caught:
        open_image(layout, None, AMD64)
    assert caught.value.hint == f"It has oci:{layout}:hello, oci:{layout}:second."
    assert open_image(layout, "second", AMD64).config == open_image(layout, "hello", AMD64).config


def test_what_is_no_layout(tmp_path: Path, layout: Path) -> None:
    with pytest.raises(ConfigError, match="not a folder"):
        open_image(tmp_path / "nothing", None, AMD64)
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
