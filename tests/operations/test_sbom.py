"""The software bills of materials beside artifacts, and on their way with them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import fledge as library
from fledge.errors import ConfigError, CorruptError
from fledge.host.settings import Settings
from fledge.operations.builds import build_all
from fledge.project import provenance
from fledge.report import Reporter
from fledge.session import Session
from fledge.store.cache import Cache
from fledge.tree.digest import Digest
from tests.support import images, judges, project, tars
from tests.support.oci_registry import OciRegistry
from tests.support.project import Fledge

SBOM = '[sbom]\nformats = ["spdx", "cyclonedx"]\n'
DPKG = b"Package: libc6\nSource: glibc\nVersion: 2.36-9\nArchitecture: amd64\n"
NODE = b'{"name":"left-pad","version":"1.3.0","license":"WTFPL"}'
CHECKOUT = Path(__file__).parents[2]


def make(folder: Path, tables: str = SBOM, *, damaged: bool = False) -> Path:
    """Write a project with an image that has packages. Returns its fledge.toml."""
    layer = tars.pack(
        tars.file("etc/os-release", b"ID=debian\nVERSION_ID=12\n"),
        tars.file("var/lib/dpkg/status", DPKG),
        tars.file("srv/node_modules/left-pad/package.json", NODE[:9] if damaged else NODE),
    )
    images.write_layout(folder / "layout", images.image(layer), "v1")
    project.write(folder, "kestrel", project.program())
    project.write(folder, "app.conf", b"x")
    text = f"""
        version = "1"
        strategy = "oci_rootfs"
        [source]
        image = "oci:layout:v1"
        [filesystem]
        type = "erofs"
        {project.LOCAL_AGENT}
        [mappings]
        "app.conf" = "/etc/app.conf"
        {tables}
        """
    return project.write(folder, "fledge.toml", text.encode())


def session(folder: Path) -> Session:
    return Session(Settings(os.environ), Cache(folder / "cache"), Reporter(), backoff=0)


def build(folder: Path, *tables: str, damaged: bool = False) -> Path:
    return library.build(make(folder, *tables, damaged=damaged), folder / "web.erofs").path


def names(artifact: Path) -> set[str]:
    return {each.name.removeprefix(artifact.name) for each in artifact.parent.glob("web.*")}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_what_the_documents_say(tmp_path: Path) -> None:
    artifact = build(tmp_path)
    digest = Digest.of(artifact.read_bytes()).hex
    spdx = read(artifact.with_name("web.erofs.spdx.json"))
    listed = {each["name"]: each for each in spdx["packages"]}
    assert listed.keys() >= {"web.erofs", "agent", "app.conf", "libc6", "left-pad"}
    assert spdx["documentDescribes"] == ["SPDXRef-Artifact"]
    assert listed["web.erofs"]["checksums"][0]["checksumValue"] == digest
    kestrel = Digest.of((tmp_path / "kestrel").read_bytes()).hex
    assert listed["agent"]["checksums"][0]["checksumValue"] == kestrel
    purl = listed["libc6"]["externalRefs"][0]["referenceLocator"]
    assert purl == "pkg:deb/debian/libc6@2.36-9?arch=amd64&distro=debian-12"
    assert listed["libc6"]["sourceInfo"].endswith("built from the source package glibc")
    assert listed["left-pad"]["licenseDeclared"] == "WTFPL"
    assert "comment" not in spdx
    bom = read(artifact.with_name("web.erofs.cdx.json"))
    assert bom["metadata"]["component"]["hashes"][0]["content"] == digest
    by_name = {each["name"]: each for each in bom["components"]}
    assert by_name["left-pad"]["purl"] == "pkg:npm/left-pad@1.3.0"
    assert by_name["app.conf"]["type"] == "file"
    assert "compositions" not in bom


def test_they_are_recorded_and_the_same_again(tmp_path: Path, fledge: Fledge) -> None:
    artifact = build(tmp_path / "a")
    other = build(tmp_path / "b")
    record = provenance.load(artifact)
    assert set(record.sboms) == {"spdx", "cyclonedx"}
    for kind, suffix in (("spdx", ".spdx.json"), ("cyclonedx", ".cdx.json")):
        text = artifact.with_name(artifact.name + suffix).read_bytes()
        assert record.sboms[kind] == Digest.of(text)  # type: ignore[index]
        assert other.with_name(other.name + suffix).read_bytes() == text
        assert fledge("sbom", artifact, "--format", kind).out.encode() == text
    assert library.sbom(artifact, "spdx") == artifact.with_name("web.erofs.spdx.json").read_bytes()
    artifact.with_name("web.erofs.provenance.json").unlink()
    alone = json.loads(library.sbom(artifact))
    assert [each["name"] for each in alone["packages"]] == ["web.erofs", "left-pad", "libc6"]
    assert alone["creationInfo"]["created"] == "1970-01-01T00:00:00Z"


def test_what_cannot_be_read_is_said(tmp_path: Path, fledge: Fledge) -> None:
    toml = make(tmp_path, damaged=True)
    done = fledge("build", "-c", toml, "-o", tmp_path / "web.erofs")
    assert done.code == 0
    path = "/srv/node_modules/left-pad/package.json"
    assert f"the SBOM is incomplete, and says so: {path}: it is no package" in done.err
    assert path in read(tmp_path / "web.erofs.spdx.json")["comment"]
    bom = read(tmp_path / "web.erofs.cdx.json")
    assert bom["compositions"] == [{"aggregate": "incomplete", "assemblies": ["artifact"]}]
    assert path in bom["metadata"]["properties"][0]["value"]


def test_an_artifact_of_nobody(tmp_path: Path, fledge: Fledge) -> None:
    done = fledge("sbom", project.write(tmp_path, "x", b"nothing"))
    assert (done.code, done.out) == (4, "")
    done = fledge("sbom", tmp_path / "y")
    assert (done.code, done.out) == (2, "")


@pytest.mark.parametrize(
    ("formats", "problem"),
    [
        ('"spdx"', "must be a list of texts"),
        ("[]", "must be a list of texts"),
        ('["spdy"]', 'did you mean "spdx"?'),
        ('["spdx", "spdx"]', "twice"),
        (None, "write formats ="),
    ],
)
def test_a_wrong_table(formats: str | None, problem: str, tmp_path: Path) -> None:
    toml = make(tmp_path, f"[sbom]\nformats = {formats}\n" if formats else "[sbom]\n")
    with pytest.raises(ConfigError) as caught:
        library.build(toml, tmp_path / "web.erofs")
    assert problem in str(caught.value)


def test_an_initramfs(tmp_path: Path) -> None:
    toml = project.make(tmp_path, project.LOCAL_AGENT, SBOM)
    artifact = library.build(toml, tmp_path / "plugin.cpio.gz")
    assert artifact.beside.spdx == tmp_path / "plugin.cpio.gz.spdx.json"
    listed = {each["name"]: each for each in read(artifact.beside.spdx)["packages"]}
    busybox = Digest.of((tmp_path / "busybox").read_bytes()).hex
    assert listed["busybox"]["checksums"][0]["checksumValue"] == busybox
    record = provenance.load(artifact.path)
    assert set(record.sboms) == {"spdx", "cyclonedx"}
    assert record.uncompressed == artifact.uncompressed


def test_a_build_without_one_loads_and_writes_nothing(tmp_path: Path) -> None:
    artifact = build(tmp_path, "")
    assert names(artifact) == {"", ".provenance.json"}
    record = provenance.load(artifact)
    assert record.sboms == {}
    assert "packaging" not in record.versions


def test_those_of_an_older_build_go(tmp_path: Path) -> None:
    artifact = build(tmp_path)
    own = artifact.with_name("web.erofs.cdx.json")
    build(tmp_path, '[sbom]\nformats = ["cyclonedx"]\n')
    assert names(artifact) == {"", ".provenance.json", ".cdx.json"}
    own.write_bytes(b"mine")
    build(tmp_path, "")
    assert own.read_bytes() == b"mine", "no build has written that"


@pytest.mark.slow
def test_verify_compares_them(tmp_path: Path, fledge: Fledge) -> None:
    artifact, toml = build(tmp_path), tmp_path / "fledge.toml"
    assert fledge("verify", artifact, "-c", toml).code == 0
    beside = artifact.with_name("web.erofs.spdx.json")
    text = beside.read_bytes()
    beside.write_bytes(text.replace(b"left-pad", b"right-pad"))
    done = fledge("verify", artifact, "-c", toml)
    assert done.code != 0
    assert "web.erofs.spdx.json: recorded sha256" in done.out + done.err
    beside.unlink()
    assert fledge("verify", artifact, "-c", toml).code != 0
    beside.write_bytes(text)
    statement = artifact.with_name("web.erofs.provenance.json")
    digest = Digest.of(text).hex
    statement.write_text(statement.read_text().replace(digest, "5" * 64))
    done = fledge("verify", artifact, "-c", toml)
    assert done.code != 0
    assert f"recorded {'5' * 64}, here {digest}" in done.out + done.err


@pytest.mark.slow
def test_only_what_changed_is_built(tmp_path: Path) -> None:
    toml = make(tmp_path)

    def status() -> str:
        [result] = build_all([toml], tmp_path, only_changed=True)
        assert result.error is None
        return "unchanged" if result.unchanged else "built"

    assert [status(), status()] == ["built", "unchanged"]
    [beside] = tmp_path.glob("*.cdx.json")
    text = beside.read_bytes()
    beside.write_bytes(text + b" ")
    assert [status(), status()] == ["built", "unchanged"]
    assert beside.read_bytes() == text
    beside.unlink()
    assert [status(), status()] == ["built", "unchanged"]
    make(tmp_path, '[sbom]\nformats = ["spdx"]\n')
    assert [status(), status()] == ["built", "unchanged"]
    assert not beside.exists()


@pytest.mark.slow
def test_they_go_to_a_registry_and_come_back(tmp_path: Path, served: OciRegistry) -> None:
    artifact = build(tmp_path)
    here = session(tmp_path)
    reference = f"{served.host}/team/web:1.0"
    library.push(artifact, reference, session=here)
    (tmp_path / "pulled").mkdir()
    [pulled] = library.pull(reference, tmp_path / "pulled", platform="linux/amd64", session=here)
    assert names(pulled.path) == {"", ".provenance.json", ".spdx.json", ".cdx.json"}
    for name in names(artifact):
        copy = pulled.path.with_name(f"web.erofs{name}").read_bytes()
        assert copy == artifact.with_name(f"web.erofs{name}").read_bytes()
    kinds = {
        json.loads(raw).get("artifactType")
        for _, raw in served.repository("team/web").manifests.values()
    }
    assert {"application/spdx+json", "application/vnd.cyclonedx+json"} <= kinds
    library.pull(reference, tmp_path / "pulled", platform="linux/amd64", session=here)
    own = pulled.path.with_name("web.erofs.spdx.json")
    own.write_bytes(b"{}")
    with pytest.raises(ConfigError, match="so a pull does not replace it"):
        library.pull(reference, tmp_path / "pulled", platform="linux/amd64", session=here)
    artifact.with_name("web.erofs.spdx.json").write_bytes(b"{}")
    with pytest.raises(CorruptError, match="is not the software bill of materials that"):
        library.push(artifact, reference, session=here)


@pytest.mark.real
def test_packages_of_a_debian_image(
    tmp_path: Path, fledge: Fledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As dpkg-query lists them, and valid as the tools of both formats see it."""
    if os.geteuid() != 0 or not shutil.which("umoci") or not shutil.which("debootstrap"):
        pytest.skip("takes root, debootstrap and umoci: run scripts/test-tools")
    layout = CHECKOUT / ".cache/debian"
    monkeypatch.delenv("DOCKER_CONFIG")  # buildah refuses one that does not exist
    subprocess.run([CHECKOUT / "scripts/debian-image", layout], check=True)
    project.write(tmp_path, "kestrel", project.program())
    text = f'version = "1"\nstrategy = "oci_rootfs"\n[source]\nimage = "oci:{layout}:debian"\n'
    text += f'[filesystem]\ntype = "erofs"\n{project.LOCAL_AGENT}{SBOM}'
    toml = project.write(tmp_path, "fledge.toml", text.encode())
    artifact = library.build(toml, tmp_path / "web.erofs").path
    status = fledge("inspect", artifact, "/var/lib/dpkg/status").out
    project.write(tmp_path, "dpkg/status", status.encode())
    form = "${Package} ${Version} ${Architecture}\n"
    listed = subprocess.run(
        ["dpkg-query", f"--admindir={tmp_path}/dpkg", "-W", "-f", form],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert len(listed) > 100
    bom = read(artifact.with_name("web.erofs.cdx.json"))
    purls = [each.get("purl", "") for each in bom["components"]]
    found = [each for each in purls if each.startswith("pkg:deb/debian/")]
    wanted = []
    for name, version, architecture in map(str.split, listed):
        plain = version.replace("+", "%2B")
        at = f"pkg:deb/debian/{name.replace('+', '%2B')}@{plain}"
        wanted.append(f"{at}?arch={architecture}&distro=debian-12")
    assert sorted(found) == sorted(wanted)
    for suffix in (".spdx.json", ".cdx.json"):
        assert judges.problems(artifact.with_name(f"web.erofs{suffix}")) == []
