"""A first fledge.toml: valid as it is, and with every setting switched on."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import pytest
import tomli

from fledge.project import starter
from fledge.project.jsonschema import json_schema
from fledge.project.schema import schema

TABLES: dict[str, dict[str, dict[str, object]]] = {
    "oci_rootfs": {"source": {"image": "nginx"}},
    "initramfs": {"mappings": {'a "b" #': "/usr/bin/app"}},
}
MANIFEST = {"name": "web", "version": "0.1.0", "workload.base_url": "http://127.0.0.1:80"}


def switched_on(text: str) -> str:
    return re.sub(r"^#(?=[\[\"\w])", "", text, flags=re.MULTILINE)


VALIDATOR = jsonschema.Draft202012Validator(json_schema())


@pytest.mark.parametrize(
    ("strategy", "has_manifest"), [("oci_rootfs", True), ("initramfs", False), ("initramfs", True)]
)
def test_every_setting_is_valid(strategy: str, has_manifest: bool) -> None:
    settings = starter.Settings(
        strategy, TABLES[strategy], MANIFEST, has_manifest, {"workload.base_url": "A guess."}
    )
    text = starter.render(settings)
    data: dict[str, Any] = tomli.loads(text)
    for table, keys in TABLES[strategy].items():
        assert data[table] == keys
    assert ("manifest" in data) == has_manifest
    everything = tomli.loads(switched_on(text))
    assert everything.keys() >= {"agent", "mappings", "target", "manifest"}
    for each in (data, everything):
        VALIDATOR.validate(each)
    assert text.startswith("#:schema ./fledge.schema.json\n")


def test_comments_are_those_of_the_declarations() -> None:
    settings = starter.Settings("oci_rootfs", TABLES["oci_rootfs"], None, has_manifest=False)
    text = starter.render(settings)
    words = " ".join(line.removeprefix("# ").strip() for line in text.splitlines())
    assert "[manifest]" not in words
    for table, keys in starter.SUGGESTED:
        found = next(each for each in schema().tables if each.name == table)
        if any("oci_rootfs" in group.presence for group in found.groups):
            assert found.groups[0].description in words
            for key in keys:
                assert found.by_name()[key][0].description in words
    assert max(map(len, text.splitlines())) <= 100


def test_a_key_that_is_not_declared() -> None:
    settings = starter.Settings("oci_rootfs", {"source": {"nope": "x"}}, None, has_manifest=False)
    with pytest.raises(KeyError, match="nope"):
        starter.render(settings)
