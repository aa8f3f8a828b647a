"""The record of a build, and verification by building again."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from msgspec.structs import replace

from fledge.errors import ConfigError, CorruptError, FledgeError
from fledge.operations import build
from fledge.operations.verify import Verification, verify
from fledge.project import provenance
from fledge.project.provenance import MAX_STATEMENT_SIZE, MAX_STATEMENT_VALUES
from tests.support import project
from tests.support.pythons import nobody

DIGEST = {"type": "object", "patternProperties": {"^[a-z0-9_]+$": {"type": "string"}}}
TEXT = {"type": "string"}
URI = {"type": "string", "pattern": r"^[A-Za-z][A-Za-z0-9+.-]*:"}
DESCRIPTOR: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": TEXT,
        "uri": TEXT,
        "digest": DIGEST,
        "content": TEXT,
        "downloadLocation": TEXT,
        "mediaType": TEXT,
        "annotations": {"type": "object"},
    },
    "anyOf": [{"required": [key]} for key in ("uri", "digest", "content")],
    "additionalProperties": False,
}
DESCRIPTORS = {"type": "array", "items": DESCRIPTOR}
TIME = {"type": "string", "format": "date-time"}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["_type", "subject", "predicateType", "predicate"],
    "additionalProperties": False,
    "properties": {
        "_type": {"const": "https://in-toto.io/Statement/v1"},
        "subject": {
            "type": "array",
            "minItems": 1,
            "items": {"allOf": [DESCRIPTOR, {"required": ["digest"]}]},
        },
        "predicateType": {"const": "https://slsa.dev/provenance/v1"},
        "predicate": {
            "type": "object",
            "required": ["buildDefinition", "runDetails"],
            "additionalProperties": False,
            "properties": {
                "buildDefinition": {
                    "type": "object",
                    "required": ["buildType", "externalParameters"],
                    "additionalProperties": False,
                    "properties": {
                        "buildType": URI,
                        "externalParameters": {"type": "object", "minProperties": 1},
                        "internalParameters": {"type": "object"},
                        "resolvedDependencies": DESCRIPTORS,
                    },
                },
                "runDetails": {
                    "type": "object",
                    "required": ["builder"],
                    "additionalProperties": False,
                    "properties": {
                        "builder": {
                            "type": "object",
                            "required": ["id"],
                            "additionalProperties": False,
                            "properties": {
                                "id": URI,
                                "version": {"type": "object", "additionalProperties": TEXT},
                                "builderDependencies": DESCRIPTORS,
                            },
                        },
                        "metadata": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                "invocationId": TEXT,
                                "startedOn": TIME,
                                "finishedOn": TIME,
                            },
                        },
                        "byproducts": DESCRIPTORS,
                    },
                },
            },
        },
    },
}
"""in-toto's Statement and ResourceDescriptor v1 (its spec/v1/statement.md and
resource_descriptor.md), and SLSA's Provenance v1 (slsa.dev/spec/v1.0/provenance)."""


def make(toml: Path, output: Path) -> build.Artifact:
    return build.build(toml, output, platform="linux/amd64")


def again(artifact: Path, toml: Path) -> Verification:
    return verify(artifact, toml)


def read(artifact: Path) -> dict[str, Any]:
    document = json.loads(provenance.path_beside(artifact).read_bytes())
    assert isinstance(document, dict)
    return document


def test_it_is_what_in_toto_and_slsa_describe(tmp_path: Path) -> None:
    for toml, name in (
        (project.make(tmp_path / "a"), "a.gz"),
        (project.make_rootfs(tmp_path / "b"), "b.img"),
    ):
        artifact = make(toml, tmp_path / name)
        document = read(artifact.path)
        jsonschema.validate(document, SCHEMA)
        assert document["subject"][0] == {"name": name, "digest": {"sha256": artifact.digest.hex}}
        dependencies = document["predicate"]["buildDefinition"]["resolvedDependencies"]
        digests = {item["digest"]["sha256"] for item in dependencies}
        assert digests == {item.digest.hex for item in artifact.inputs}
        assert str(tmp_path / "b") not in json.dumps(document)


def test_an_initramfs_has_the_digest_of_its_archive_too(tmp_path: Path) -> None:
    artifact = make(project.make(tmp_path), tmp_path / "x.cpio.gz")
    unpacked = gzip.decompress(artifact.path.read_bytes())
    archive = {"name": "x.cpio", "digest": {"sha256": hashlib.sha256(unpacked).hexdigest()}}
    assert read(artifact.path)["subject"][1] == archive


@pytest.mark.real
def test_it_is_the_same_for_anyone(tmp_path: Path) -> None:
    toml = project.make_rootfs(tmp_path / "mine")
    make(toml, tmp_path / "x.img")
    with nobody() as user:
        project.make_rootfs(user.home)
        command: list[str | Path] = [user.python, "-m", "fledge", "build", "-q", "-o", "x.img"]
        done = user.run([*command, "--platform", "linux/amd64"])
        assert done.returncode == 0, done.stderr
        for name in ("x.img", "x.img.provenance.json"):
            assert (user.home / name).read_bytes() == (tmp_path / name).read_bytes()


def test_what_is_built_again_is_equal(tmp_path: Path) -> None:
    for toml, name in (
        (project.make(tmp_path / "a"), "a.gz"),
        (project.make_rootfs(tmp_path / "b"), "b.img"),
    ):
        artifact = make(toml, tmp_path / name)
        verdict = again(artifact.path, toml)
        assert verdict.equal
        assert (verdict.false_claims, verdict.versions) == ((), ())


@pytest.mark.real
def test_no_flipped_byte_is_equal(tmp_path: Path) -> None:
    toml = project.make_rootfs(tmp_path)
    artifact = make(toml, tmp_path / "x.img")
    places = random.Random(5)  # noqa: S311
    for _ in range(100):
        position = places.randrange(artifact.size)
        with artifact.path.open("r+b") as file:
            file.seek(position)
            byte = file.read(1)[0]
            file.seek(position)
            file.write(bytes([byte ^ 1 << places.randrange(8)]))
            file.flush()
            assert not again(artifact.path, toml).equal
            file.seek(position)
            file.write(bytes([byte]))
    assert again(artifact.path, toml).equal


def test_it_names_the_input_that_changed(tmp_path: Path) -> None:
    toml = project.make_rootfs(tmp_path)
    artifact = make(toml, tmp_path / "x.img")
    project.write(tmp_path, "payload/site/index.html", b"changed")
    verdict = again(artifact.path, toml)
    assert not verdict.equal
    assert verdict.artifact == verdict.recorded != verdict.rebuilt
    assert any(
        line.startswith("mapping payload/site/index.html: digest.sha256: recorded ")
        for line in verdict.false_claims
    )


def test_it_names_the_setting_that_changed(tmp_path: Path) -> None:
    toml = project.make_rootfs(tmp_path)
    artifact = make(toml, tmp_path / "x.img")
    toml.write_text(toml.read_text().replace("size_buffer_mb = 8", "size_buffer_mb = 9"))
    with pytest.raises(FledgeError, match=r"size_buffer_mb: recorded 8, here 9") as raised:
        again(artifact.path, toml)
    assert raised.value.exit_code == 1


def test_the_recorded_time_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml = project.make_rootfs(tmp_path)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "5")
    artifact = make(toml, tmp_path / "x.img")
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    assert again(artifact.path, toml).equal


def test_another_version_is_told(tmp_path: Path) -> None:
    toml = project.make_rootfs(tmp_path)
    artifact = make(toml, tmp_path / "x.img")
    path = provenance.path_beside(artifact.path)
    path.write_text(path.read_text().replace('"deflate": "', '"deflate": "9.'))
    [line] = again(artifact.path, toml).versions
    assert line.startswith("deflate: recorded 9.")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("", "", "not the provenance of a fledge build: Expecting"),
        ("{", "[" * 10_000, "recursion"),
        ('"_type"', f'"x": [{"[]," * 300_000} 0], "_type"', "more than 524288 values"),
        ('"sha256": "', '"sha256": "x', "not a sha256 digest"),
        ('"diff_ids": [', '"diff": [', "diff_ids"),
        ('"sha256:', '"sha256:../', "not a sha256 digest"),
        ('"platform": "linux/amd64"', '"platform": 3', "platform is missing"),
        ("1704067200", "-1", "not a whole number"),
        ("1704067200", "true", "not a whole number"),
        ("1704067200", str(1 << 32), "SOURCE_DATE_EPOCH is missing or not a whole number of at"),
        ('"subject": [', '"x": ' + "[" * 70 + "]" * 70 + ', "subject": [', "nested more than 64"),
        ('"resolvedDependencies": [', '"resolvedDependencies": [7,', "missing"),
        ('"subject": [', '"subject": {}, "x": [', "not a list"),
    ],
)
@pytest.mark.slow
def test_a_damaged_one_is_told(tmp_path: Path, old: str, new: str, words: str) -> None:
    toml = project.make_rootfs(tmp_path)
    artifact = make(toml, tmp_path / "x.img")
    path = provenance.path_beside(artifact.path)
    path.write_text(path.read_text().replace(old, new) if old else "nothing")
    with pytest.raises(CorruptError, match=words):
        again(artifact.path, toml)


def test_one_that_no_reader_would_take_is_not_written(tmp_path: Path) -> None:
    artifact = make(project.make(tmp_path), tmp_path / "plugin.cpio.gz")
    record = provenance.load(artifact.path)
    for config in ({"x": "y" * MAX_STATEMENT_SIZE}, {"x": [0] * MAX_STATEMENT_VALUES}):
        with pytest.raises(ConfigError, match=r"provenance of plugin\.cpio\.gz would be useless"):
            provenance.serialize(replace(record, config=config))


def test_none_at_all_is_told(tmp_path: Path) -> None:
    toml = project.make_rootfs(tmp_path)
    project.write(tmp_path, "x.img", b"")
    with pytest.raises(ConfigError, match=r"x\.img\.provenance\.json does not exist"):
        again(tmp_path / "x.img", toml)


def test_the_command(tmp_path: Path, fledge: project.Fledge) -> None:
    project.make(tmp_path)
    assert fledge("build", "-q", "-o", "x.gz").code == 0
    done = fledge("verify", "x.gz")
    assert done.code == 0, done.err
    assert done.out.startswith("equal: x.gz ")
    project.write(tmp_path, "x.gz", b"another")
    done = fledge("verify", "x.gz")
    assert done.code == 1
    assert done.out.startswith("different: x.gz\n")
    assert "cannot be compared: x.gz is not in a known format" in done.out
    assert fledge("build", "-q", "-o", "x.gz").code == 0
    project.write(tmp_path, "payload/site/index.html", b"<h1>bye</h1>\n")
    done = fledge("verify", "x.gz")
    assert done.code == 1
    assert "mapping payload/site/index.html: digest.sha256: recorded" in done.out
    assert "    +<h1>bye</h1>\n" in done.out
    assert fledge("verify", "missing").code == 2
