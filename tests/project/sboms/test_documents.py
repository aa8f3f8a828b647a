"""The documents of both formats: their bytes, and what the tools of the formats say of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fledge import _version
from fledge.errors import CorruptError
from fledge.project.sboms import writer
from fledge.project.sboms.inventory import Inventory, package_url
from fledge.project.sboms.table import SBOM_FORMATS, SbomFormat
from fledge.project.sboms.writer import serialize
from fledge.sources.inputs import Input
from fledge.tree.digest import Digest
from fledge.tree.packages import Distribution, Found, Package
from tests.support import golden, judges

DEBIAN = Distribution("debian", "12")

PACKAGES = (
    Package(
        "deb", "libstdc++6", "12.2.0-14+deb12u1", b"var/lib/dpkg/status", "amd64", "", "gcc-12"
    ),
    Package("apk", "musl", "1.2.5-r0", b"lib/apk/db/installed", "x86_64", "MIT"),
    Package("rpm", "bash", "1:5.2-1.fc40", b"x/rpmdb.sqlite", "x86_64", "GPLv3+ and so on"),
    Package("pypi", "My_Package", "1.0", b"x/\xff\n/METADATA", None, "BSD"),
    Package("npm", "@babel/core", "7.0.0", b"x/package.json", None, "mit or apache-2.0"),
    Package("golang", "stdlib", "1.19.8", b"bin/x"),
    Package("golang", "golang.org/x/sys", "v0.1.0", b"bin/x", None, "LicenseRef-own"),
    Package("golang", "example.org/program", "", b"bin/x"),
    Package("golang", "example.org/program", "", b"bin/x"),
)
INVENTORY = Inventory(
    "wéb.img",
    Digest("ab" * 32),
    1_700_000_000,
    (
        Input("image", "docker://docker.io/library/debian:12@sha256:0", Digest("01" * 32)),
        Input("agent", "https://example.org/kestrel", Digest("02" * 32), {"version": "v1.2"}),
        Input("busybox", "https://example.org/busybox", Digest("03" * 32)),
        Input("mapping", "conf/a b\udcff", Digest("04" * 32)),
        Input("mapping", "conf/c", Digest("05" * 32)),
    ),
    Found(PACKAGES, ("/var/lib/rpm/Packages: not read",), DEBIAN),
)

PURLS = (
    "pkg:deb/debian/libstdc%2B%2B6@12.2.0-14%2Bdeb12u1?arch=amd64&distro=debian-12",
    "pkg:apk/debian/musl@1.2.5-r0?arch=x86_64&distro=debian-12",
    "pkg:rpm/debian/bash@5.2-1.fc40?arch=x86_64&distro=debian-12&epoch=1",
    "pkg:pypi/my-package@1.0",
    "pkg:npm/%40babel/core@7.0.0",
    "pkg:golang/stdlib@1.19.8",
    "pkg:golang/golang.org/x/sys@v0.1.0",
    "pkg:golang/example.org/program",
)


def test_package_urls() -> None:
    assert tuple(package_url(each, DEBIAN) for each in PACKAGES[:-1]) == PURLS
    assert package_url(PACKAGES[0], Distribution()).startswith("pkg:deb/libstdc%2B%2B6@")


@pytest.mark.parametrize("kind", SBOM_FORMATS)
def test_bytes(kind: SbomFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_version, "__version__", "0.1.0")
    text = serialize(INVENTORY, kind)
    assert text.startswith(SBOM_FORMATS[kind].start)
    assert Digest.of(text).hex == golden.SBOMS[kind]


def test_licences() -> None:
    spdx = json.loads(serialize(INVENTORY, "spdx"))
    declared = {each["name"]: each["licenseDeclared"] for each in spdx["packages"]}
    assert declared["musl"] == "MIT"
    assert declared["@babel/core"] == "MIT OR Apache-2.0"
    assert declared["stdlib"] == "NOASSERTION"
    others = {each["licenseId"]: each["name"] for each in spdx["hasExtractedLicensingInfos"]}
    assert others[declared["bash"]] == "GPLv3+ and so on"
    assert others[declared["My_Package"]] == "BSD"
    assert others[declared["golang.org/x/sys"]] == "LicenseRef-own"


def test_a_document_that_nobody_could_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_SBOM_SIZE", 1000)
    with pytest.raises(CorruptError, match="would have more than"):
        serialize(INVENTORY, "spdx")


def test_another_artifact_has_another_name() -> None:
    other = Inventory("x", INVENTORY.digest, 0, (), Found((), (), Distribution()))
    assert other.uri != INVENTORY.uri
    assert other.serial_number != INVENTORY.serial_number


@pytest.mark.slow
@pytest.mark.parametrize("kind", SBOM_FORMATS)
def test_they_are_valid(kind: SbomFormat, tmp_path: Path) -> None:
    empty = Inventory("x", INVENTORY.digest, 0, (), Found((), (), Distribution()))
    for number, inventory in enumerate((INVENTORY, empty)):
        path = tmp_path / f"{number}{SBOM_FORMATS[kind].suffix}"
        path.write_bytes(serialize(inventory, kind))
        assert judges.problems(path) == []
