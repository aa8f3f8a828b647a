"""Indexes, manifests and configs: accepted, refused, and the chosen platform."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.errors import ConfigError, CorruptError, FledgeError
from fledge.net.json_document import MAX_DOCUMENT_SIZE
from fledge.oci.manifest import (
    Descriptor,
    Index,
    Manifest,
    Platform,
    choose_manifest,
    make_image,
    parse_config,
    parse_manifest,
    parse_platform,
    resolve_manifest,
)
from fledge.tree.content import Span
from fledge.tree.digest import Digest

OCI = "application/vnd.oci.image"
DOCKER = "application/vnd.docker"
DIGEST = Digest("ab" * 32)
CONFIG = {
    "os": "linux",
    "architecture": "amd64",
    "rootfs": {"type": "layers", "diff_ids": [str(DIGEST)]},
}


def descriptor(media_type: object, **changes: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(DIGEST), "size": 7, **changes}


def manifest(**changes: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "config": descriptor(f"{OCI}.config.v1+json"),
        "layers": [descriptor(f"{OCI}.layer.v1.tar+gzip")],
        **changes,
    }


def parsed(value: object) -> Manifest | Index:
    return parse_manifest(json.dumps(value).encode(), "HERE")


def test_manifests_of_oci_and_docker() -> None:
    oci = parsed(manifest())
    assert isinstance(oci, Manifest)
    assert oci.layers == (Descriptor(f"{OCI}.layer.v1.tar+gzip", DIGEST, 7),)
    docker = manifest(
        mediaType=f"{DOCKER}.distribution.manifest.v2+json",
        config=descriptor(f"{DOCKER}.container.image.v1+json"),
        layers=[descriptor(f"{DOCKER}.image.rootfs.diff.tar.gzip")],
    )
    assert isinstance(parsed(docker), Manifest)


@pytest.mark.parametrize("kind", ["tar", "tar+gzip", "tar+zstd", "nondistributable.v1.tar+gzip"])
def test_every_kind_of_layer(kind: str) -> None:
    kind = kind if "v1" in kind else f"v1.{kind}"
    assert parsed(manifest(layers=[descriptor(f"{OCI}.layer.{kind}")]))


@pytest.mark.parametrize(
    "kind", ["application/octet-stream", "application/json", "text/html", "", None]
)
def test_configs_of_images_that_registries_mistyped(kind: str | None) -> None:
    config = descriptor(kind)
    found = parsed(manifest(config=config))
    assert isinstance(found, Manifest)
    assert found.config == Descriptor(kind or "", DIGEST, 7)


@pytest.mark.parametrize("kind", ["application/octet-stream", "", None])
def test_layers_without_a_type(kind: str | None) -> None:
    found = parsed(manifest(layers=[descriptor(kind)]))
    assert isinstance(found, Manifest)
    assert found.layers == (Descriptor(kind or "", DIGEST, 7),)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "not a JSON object"),
        ({"schemaVersion": 1, "fsLayers": []}, "schema version 1"),
        ({**manifest(), "manifests": []}, "both a manifest and an index"),
        ({}, "config: is not a JSON object"),
        (manifest(mediaType="text/html"), "not a container image but 'text/html'"),
        (manifest(config=descriptor("application/vnd.cncf.helm.config.v1+json")), "helm"),
        (manifest(config=descriptor("application/vnd.oci.empty.v1+json")), "vnd.oci.empty"),
        (
            manifest(artifactType="application/x.sbom", config=descriptor("application/json")),
            "not a container image but 'application/x.sbom'",
        ),
        (
            manifest(
                artifactType="application/x.sbom",
                config=descriptor("application/vnd.oci.empty.v1+json"),
            ),
            "not a container image but 'application/x.sbom'",
        ),
        (manifest(config=descriptor("text/plain")), "not a container image but 'text/plain'"),
        (manifest(config=descriptor(7)), "mediaType is not a printable string"),
        (manifest(layers=[descriptor("text/html")]), "not a container image but 'text/html'"),
        (manifest(layers=[descriptor(f"{OCI}.layer.v1.tar+gzip+encrypted")]), "encrypted"),
        (manifest(layers={}), "layers is not a list"),
        (manifest(layers=[7]), "layers: is not a JSON object"),
        (manifest(config=descriptor("x", digest="sha512:" + "a" * 128)), "sha512"),
        (manifest(config=descriptor("x", digest="sha256:../../etc/passwd")), "not a sha256"),
        (manifest(config=descriptor("x", digest=str(DIGEST).upper())), "not a sha256"),
        (manifest(config=descriptor("x", size=-1)), "size is not a whole number"),
        (manifest(config=descriptor("x", size=True)), "size is not a whole number"),
        (manifest(config=descriptor("x", size=1 << 62)), "size is not a whole number"),
        (manifest(mediaType="\ud800"), "printable"),
        (manifest(mediaType="\x1b[2J"), "printable"),
    ],
)
def test_what_is_no_manifest_is_refused(value: object, message: str) -> None:
    with pytest.raises(CorruptError, match="HERE: ") as caught:
        parsed(value)
    assert message in caught.value.message


@pytest.mark.parametrize(
    "raw", [b"", b"\xff", b"[" * 100_000, b"{" * 9, b" " * (MAX_DOCUMENT_SIZE + 1), b"1" * 9999]
)
def test_what_is_no_json_is_refused(raw: bytes) -> None:
    with pytest.raises(CorruptError):
        parse_manifest(raw, "HERE")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just(str(DIGEST)),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*manifest(), *CONFIG]), inner),
)


@pytest.mark.slow
@given(json_values)
def test_any_json_is_parsed_or_refused(value: object) -> None:
    raw = json.dumps(value).encode()
    for parse in (parse_manifest, parse_config):
        try:
            parse(raw, "HERE")
        except CorruptError as error:
            assert error.message.isprintable()


def on(platform: str | None, digest: Digest = DIGEST) -> Descriptor:
    return Descriptor("x", digest, 7, Platform(*platform.split("/")) if platform else None)


def platform_members(text: str) -> dict[str, str]:
    """The members of a platform in JSON; empty ones are left out."""
    members = zip(("os", "architecture", "variant"), text.split("/"), strict=False)
    return {key: value for key, value in members if value}


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/arm64", ["linux/amd64", "linux/arm64/v8"], 1),
        ("linux/arm64/v8", ["linux/arm64"], 0),
        ("linux/arm", ["linux/arm/v5", "linux/arm/v7", "linux/arm/v6"], 1),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm/v5", "linux/arm/v6"], 2),
        ("linux/amd64", ["linux/amd64/v3", "linux/amd64/v1", "linux/amd64"], 1),
        ("linux/amd64", ["windows/amd64", None], 1),
        ("linux/amd64", ["unknown/unknown", "linux/amd64"], 1),
        ("linux/amd64", ["linux/arm64", "Linux/x86_64"], 1),
        ("linux/arm64", ["linux/AMD64", "linux/aarch64"], 1),
        ("linux/arm", ["linux/arm/6", "linux/arm/7", "linux/arm/5"], 1),
        ("linux/arm64", ["linux/arm64/8"], 0),
        ("linux/arm/v6", ["linux/armhf", "linux/armel"], 1),
        ("linux/amd64", ["/", "/amd64"], 1),
        ("linux/amd64", ["/", "linux/arm64"], 0),
        ("linux/amd64", ["linux/", "linux/amd64"], 1),
    ],
)
def test_the_best_for_a_platform(wanted: str, offered: list[str | None], chosen: int) -> None:
    digests = [str(Digest(f"{number:064}")) for number in range(len(offered))]
    listed = [
        descriptor("x", digest=digest, platform=each and platform_members(each))
        for digest, each in zip(digests, offered, strict=True)
    ]
    index = parsed({"manifests": listed})
    assert isinstance(index, Index)
    manifests = index.manifests
    assert choose_manifest(manifests, parse_platform(wanted), "HERE") is manifests[chosen]


def test_without_one_for_the_platform_it_says_what_there_is() -> None:
    manifests = [on("unknown/unknown"), on("linux/s390x"), on("linux/arm/v7")]
    with pytest.raises(ConfigError, match="HERE: has no image for linux/arm/v6") as caught:
        choose_manifest(manifests, parse_platform("linux/arm/v6"), "HERE")
    assert caught.value.hint.endswith("--platform: linux/arm/v7, linux/s390x")


def test_an_index_that_leads_to_itself() -> None:
    raw = json.dumps({"manifests": [descriptor(f"{OCI}.index.v1+json")]}).encode()
    with pytest.raises(CorruptError, match="nested indexes"):
        resolve_manifest(raw, parse_platform("linux/amd64"), "HERE", lambda _: raw)


@pytest.mark.parametrize(
    "text",
    ["", "linux", "linux/", "linux//v8", "linux/a/b/c", "windows/amd64", "amd64/v2/v3", "\x1b"],
)
def test_what_is_no_platform(text: str) -> None:
    with pytest.raises(ConfigError, match="not a platform"):
        parse_platform(text)


def test_other_spellings_of_a_platform() -> None:
    assert str(parse_platform("linux/x86_64")) == "linux/amd64"
    assert str(parse_platform("Linux/aarch64")) == "linux/arm64"
    assert str(parse_platform("linux/armv7l")) == "linux/arm/v7"
    assert str(parse_platform("linux/arm/7")) == "linux/arm/v7"
    assert str(parse_platform("linux/arm64/8")) == "linux/arm64/v8"
    assert str(parse_platform("arm64")) == "linux/arm64"
    assert str(parse_platform("AMD64")) == "linux/amd64"
    assert str(parse_platform("arm/v6")) == "linux/arm/v6"
    assert str(parse_platform("armhf")) == "linux/arm/v7"


def blob() -> Span:
    raise AssertionError


@pytest.mark.parametrize(
    ("changes", "count", "message"),
    [
        ({}, 0, "has 0 layers, but 1 diff_ids"),
        ({"rootfs": {"type": "layers", "diff_ids": [7]}}, 1, "not a printable string"),
        ({"rootfs": {"type": "squash", "diff_ids": []}}, 0, "type is not 'layers'"),
        ({"rootfs": []}, 0, "rootfs: is not"),
        ({"rootfs": None}, 0, "config: is not that of a container image: it has no rootfs"),
        ({"architecture": "arm64"}, 1, "is an image for linux/arm64, not for linux/amd64"),
        ({"os": "windows"}, 1, "is an image for windows/amd64"),
    ],
)
def test_a_config_that_does_not_fit(changes: dict[str, Any], count: int, message: str) -> None:
    config = json.dumps({**CONFIG, **changes}).encode()
    with pytest.raises(FledgeError) as caught:
        make_image("HERE", config, [blob] * count, parse_platform("linux/amd64"))
    assert message in caught.value.message


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": ""},
        {"architecture": None},
        {"architecture": None, "os": None},
        {"os": ""},
        {"os": "Linux", "architecture": "X86_64"},
        {"architecture": "AMD64"},
    ],
)
def test_a_config_whose_platform_is_spelled_otherwise_or_missing(changes: dict[str, Any]) -> None:
    config = json.dumps({**CONFIG, **changes}).encode()
    image = make_image("HERE", config, [blob], parse_platform("linux/amd64"))
    assert (image.config, image.note) == (config, "")


@pytest.mark.parametrize("layers", [{}, {"layers": None}, {"layers": []}])
@pytest.mark.parametrize("diff_ids", [{}, {"diff_ids": None}, {"diff_ids": []}])
@pytest.mark.parametrize("kind", [{}, {"type": None}, {"type": "layers"}])
def test_an_image_from_scratch(
    layers: dict[str, Any], diff_ids: dict[str, Any], kind: dict[str, Any]
) -> None:
    document = {key: value for key, value in manifest().items() if key != "layers"}
    found = parsed({**document, **layers})
    assert isinstance(found, Manifest)
    assert found.layers == ()
    config = json.dumps({**CONFIG, "rootfs": {**kind, **diff_ids}}).encode()
    assert make_image("HERE", config, [], parse_platform("linux/amd64")).layers == ()


@pytest.mark.parametrize(
    ("image", "hint"),
    [
        ("linux/x86_64", "Build it with --platform linux/amd64, or"),
        ("linux/arm/7", "Build it with --platform linux/arm/v7, or"),
        ("windows/amd64", "fledge builds for Linux; choose another image."),
        ("windows/", "fledge builds for Linux; choose another image."),
        ("linux/a b", "fledge builds for Linux; choose another image."),
    ],
)
def test_a_hint_names_only_platforms_that_fledge_takes(image: str, hint: str) -> None:
    config = json.dumps({**CONFIG, **dict.fromkeys(("os", "architecture"), None)}).encode()
    config = json.dumps({**json.loads(config), **platform_members(image)}).encode()
    with pytest.raises(ConfigError) as caught:
        make_image("HERE", config, [blob], parse_platform("linux/s390x"))
    assert caught.value.hint.startswith(hint)


def test_an_index_without_any_image_for_linux() -> None:
    with pytest.raises(ConfigError) as caught:
        choose_manifest([on("windows/amd64")], parse_platform("linux/amd64"), "HERE")
    assert caught.value.hint == "fledge builds for Linux, and it has only windows/amd64."


def test_an_index_counts_for_more_than_a_config() -> None:
    arm = parse_platform("linux/arm64")
    child = json.dumps(manifest()).encode()
    entry = descriptor("x", platform={"os": "linux", "architecture": "arm64"})
    raw = json.dumps({"manifests": [entry]}).encode()
    found = resolve_manifest(raw, arm, "HERE", lambda _: child)
    assert found.platform == arm
    config = json.dumps(CONFIG).encode()
    image = make_image("HERE", config, [blob], arm, found.digest, found.platform)
    assert image.note == (
        "HERE: is listed for linux/arm64, although its config says linux/amd64; the list decides"
    )
    config = json.dumps({**CONFIG, "architecture": "aarch64", "variant": "8"}).encode()
    assert not make_image("HERE", config, [blob], arm, found.digest, found.platform).note


def test_a_config_without_variant_fits_any() -> None:
    config = json.dumps({**CONFIG, "architecture": "arm"}).encode()
    assert make_image("HERE", config, [blob], parse_platform("linux/arm/v6")).config == config
