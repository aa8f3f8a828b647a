"""``NAME.provenance.json``: what an artifact was made of and how, for others to make it again.

An in-toto Statement (github.com/in-toto/attestation, spec/v1/statement.md) about a build, as
SLSA describes one (slsa.dev/spec/v1.0/provenance). It is as reproducible as the artifact: no
clock, no host, no path of the machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from fledge.errors import ConfigError, CorruptError, unreadable
from fledge.host.files import replacing
from fledge.project import lock
from fledge.project.config import Config
from fledge.project.lock import AgentPin, BusyboxPin, ImagePin, Lock, Named
from fledge.store.cache import SHA256

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://github.com/volantvm/fledge/blob/main/README.md#provenance"
BUILDER = "https://github.com/volantvm/fledge"

CODECS = ("crc32c", "deflate", "isal", "pyzstd")
"""The packages that have a part in the bytes of an artifact, or check those of its inputs."""

FROM_ITS_MAKER = "Take it from where the artifact comes from."

MAX_SIZE = 64 << 20
"""Bytes of a statement that are read: some 200,000 mapped files."""


class Input(msgspec.Struct, frozen=True):
    """One thing that an artifact was made from."""

    role: str
    """``image``, ``busybox``, ``agent``, ``init`` or ``mapping``."""
    uri: str
    """A URL, or a path as the config has it."""
    sha256: str
    """Of the content; of an image, of its config, which pins the layers by their diff_ids."""
    facts: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """What else pins it, or tells what it is."""


class Provenance(msgspec.Struct, frozen=True):
    """What is recorded of one build."""

    name: str
    """The artifact's file name."""
    sha256: str
    """Of the artifact."""
    cpio_sha256: str | None
    """Of the archive in it before compression, if it is one."""
    config: dict[str, object]
    """The fledge.toml, as TOML has it."""
    platform: str
    epoch: int
    """SOURCE_DATE_EPOCH, or what stands for it; in seconds."""
    inputs: tuple[Input, ...]
    versions: Mapping[str, str]
    """Of fledge and its codecs."""


def path_beside(artifact: Path) -> Path:
    """Where the provenance of an artifact is."""
    return artifact.with_name(f"{artifact.name}.provenance.json")


def versions() -> dict[str, str]:
    """Of this fledge and its codecs."""
    return {name: version(name) for name in ("fledge", *CODECS)}


def write(record: Provenance, path: Path) -> None:
    """Write the statement, whole or not at all. Raises `FledgeError`."""
    text = json.dumps(statement(record), indent=2, sort_keys=True) + "\n"
    with replacing(path) as file:
        file.write(text.encode())


def statement(record: Provenance) -> dict[str, Any]:
    """The in-toto statement, as JSON has it."""
    subject = [_subject(record.name, record.sha256)]
    if record.cpio_sha256:
        subject.append(_subject(record.name.removesuffix(".gz"), record.cpio_sha256))
    return {
        "_type": STATEMENT,
        "subject": subject,
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "config": record.config,
                    "platform": record.platform,
                    "SOURCE_DATE_EPOCH": record.epoch,
                },
                "resolvedDependencies": [_descriptor(item) for item in record.inputs],
            },
            "runDetails": {"builder": {"id": BUILDER, "version": dict(record.versions)}},
        },
    }


def load(artifact: Path) -> Provenance:
    """What is recorded beside an artifact.

    Raises `ConfigError` if there is nothing, `CorruptError` if it is no provenance of fledge's.
    """
    path = path_beside(artifact)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_SIZE + 1)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {path}",
            "fledge build writes it beside the artifact; keep the two together.",
        ) from None
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        if len(text) > MAX_SIZE:
            raise _Malformed(f"it is larger than {MAX_SIZE} bytes")
        return _record(_Part("", json.loads(text)), artifact.name)
    except (_Malformed, ValueError, RecursionError) as error:
        raise CorruptError(
            f"{path} is no provenance of a fledge build: {error}",
            FROM_ITS_MAKER,
        ) from None


def as_lock(record: Provenance, config: Config) -> Lock:
    """A lock of the config with the inputs of the build: with it comes what came then.

    Raises `CorruptError` if they are not those of that config.
    """
    image = agent = busybox = None
    try:
        for item in record.inputs:
            facts = _Part(item.role, dict(item.facts))
            if item.role == "image":
                image = Named(lock.image_name(config), {record.platform: _image_pin(item)})
            elif item.role == "agent" and (name := lock.agent_name(config.agent)):
                version = facts["version"].text() if "version" in item.facts else None
                pin = AgentPin(version, item.uri, item.sha256)
                agent = Named(name, {facts["architecture"].text(): pin})
            elif item.role == "busybox":
                busybox = BusyboxPin(item.uri, item.sha256)
    except _Malformed as error:
        raise CorruptError(f"the provenance of {record.name}: {error}", FROM_ITS_MAKER) from None
    return Lock(image, agent, busybox)


def _image_pin(item: Input) -> ImagePin:
    diff_ids = _Part("diff_ids", item.facts.get("diff_ids")).items()
    manifest = item.facts.get("manifest")
    return ImagePin(
        _Part("manifest", manifest).prefixed_sha256() if manifest else None,
        item.sha256,
        tuple(diff_id.prefixed_sha256() for diff_id in diff_ids),
    )


class _Malformed(Exception):
    """What is wrong with a statement."""


class _Part(msgspec.Struct, frozen=True):
    """A value in the statement, and where."""

    where: str
    value: object

    def __getitem__(self, key: str | int) -> _Part:
        value = self.value
        found: object = None
        if isinstance(key, str) and isinstance(value, dict):
            found = value.get(key)
        elif isinstance(key, int) and isinstance(value, list) and key < len(value):
            found = value[key]
        return _Part(f"{self.where}.{key}".lstrip("."), found)

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise _Malformed(f"{self.where} is missing, or no text")
        return self.value

    def sha256(self) -> str:
        if not SHA256.fullmatch(self.text()):
            raise _Malformed(f"{self.where} is no SHA-256 digest")
        return self.text()

    def prefixed_sha256(self) -> str:
        return _Part(self.where, self.text().removeprefix("sha256:")).sha256()

    def natural(self) -> int:
        if type(self.value) is not int or self.value < 0:
            raise _Malformed(f"{self.where} is missing, or no number")
        return self.value

    def table(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            raise _Malformed(f"{self.where} is missing, or no object")
        return self.value

    def items(self) -> list[_Part]:
        if not isinstance(self.value, list):
            raise _Malformed(f"{self.where} is missing, or no list")
        return [self[index] for index in range(len(self.value))]


def _record(top: _Part, name: str) -> Provenance:
    for key, wanted in (("_type", STATEMENT), ("predicateType", PREDICATE)):
        if top[key].text() != wanted:
            raise _Malformed(f"{key} is {top[key].text()!r}, not {wanted!r}")
    definition = top["predicate"]["buildDefinition"]
    if definition["buildType"].text() != BUILD_TYPE:
        raise _Malformed(f"buildType is {definition['buildType'].text()!r}, not {BUILD_TYPE!r}")
    subjects = top["subject"].items()
    if not subjects:
        raise _Malformed("subject is empty")
    parameters = definition["externalParameters"]
    builder = top["predicate"]["runDetails"]["builder"]
    return Provenance(
        name=name,
        sha256=subjects[0]["digest"]["sha256"].sha256(),
        cpio_sha256=subjects[1]["digest"]["sha256"].sha256() if subjects[1:] else None,
        config=parameters["config"].table(),
        platform=parameters["platform"].text(),
        epoch=parameters["SOURCE_DATE_EPOCH"].natural(),
        inputs=tuple(_input(item) for item in definition["resolvedDependencies"].items()),
        versions={key: builder["version"][key].text() for key in builder["version"].table()},
    )


def _subject(name: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": sha256}}


def _descriptor(item: Input) -> dict[str, Any]:
    """An in-toto ResourceDescriptor (spec/v1/resource_descriptor.md)."""
    descriptor: dict[str, Any] = {
        "name": item.role,
        "uri": item.uri,
        "digest": {"sha256": item.sha256},
    }
    if item.facts:
        descriptor["annotations"] = dict(item.facts)
    return descriptor


def _input(item: _Part) -> Input:
    facts = item["annotations"].table() if item["annotations"].value is not None else {}
    return Input(item["name"].text(), item["uri"].text(), item["digest"]["sha256"].sha256(), facts)
