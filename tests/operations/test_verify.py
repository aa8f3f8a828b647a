"""What a provenance claims is checked field by field, and names nothing that fledge then trusts."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fledge
from fledge.project import provenance
from fledge.sources import mappings
from tests.support import images, project
from tests.support.httpd import Server, content
from tests.support.images import write_layout
from tests.support.project import Fledge
from tests.support.registry import push, serve
from tests.support.releases import KESTREL, publish
from tests.support.tars import file, pack

AMD64 = "linux/amd64"
OTHER_DIGEST = "5" * 64


def initramfs(folder: Path) -> Path:
    return project.make(folder)


def image_initramfs(folder: Path) -> Path:
    write_layout(folder / "layout", images.image(pack(file("a", b"old"))))
    source = project.source((folder / "busybox").as_uri(), project.busybox())
    return project.make(folder, project.LOCAL_AGENT, f'{source}image = "oci:layout"\n')


def fetched_disk(folder: Path, github: Server, host: str) -> Path:
    """A disk whose image comes from a registry, and whose agent is a release."""
    push(host, "app", images.image(pack(file("a", b"old")), pack(file("b", b"new"))), "v1")
    publish(github, {"kestrel": KESTREL})
    text = f"""
        version = "1"
        strategy = "oci_rootfs"
        [source]
        image = "{host}/app:v1"
        [filesystem]
        size_buffer_mb = 8
        """
    return project.write(folder, "fledge.toml", text.encode())


KINDS: dict[str, Callable[[Path], Path]] = {
    "initramfs": initramfs,
    "initramfs over an image": image_initramfs,
    "disk": project.make_rootfs,
}


@pytest.fixture(params=[*KINDS, pytest.param("fetched disk", marks=pytest.mark.real)])
def toml(request: pytest.FixtureRequest, tmp_path: Path, github: Server) -> Iterator[Path]:
    """The fledge.toml of a project of every kind."""
    if kind := KINDS.get(request.param):
        yield kind(tmp_path / "project")
        return
    with serve(tmp_path / "registry") as host:
        yield fetched_disk(tmp_path / "project", github, host)


def leaves(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The paths of all values in a JSON document that hold no others."""
    if isinstance(value, dict | list):
        keys: Any = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield from leaves(value[key], (*path, key))
    else:
        yield path


def changed(value: object) -> object:
    """Another value of the same form."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return "changed"
    if isinstance(value, int):
        return value + 1
    if len(value) == 64:
        return OTHER_DIGEST
    if value.startswith("sha256:"):
        return f"sha256:{OTHER_DIGEST}"
    if value == AMD64:
        return "linux/arm64"
    return "arm64" if value == "amd64" else f"{value}x"


def name(place: tuple[str | int, ...], truth: dict[str, Any]) -> str:
    """What `fledge verify` calls the field at a place of the statement."""
    if "config" in place:
        return ".".join(map(str, place[place.index("config") + 1 :]))
    if "resolvedDependencies" in place:
        start = place.index("resolvedDependencies") + 1
        item = truth["predicate"]["buildDefinition"]["resolvedDependencies"][place[start]]
        return f"{item['name']} {item['uri']}: " + ".".join(map(str, place[start + 1 :]))
    if "version" in place[:-1]:
        return str(place[-1])
    return ".".join(map(str, place))


@pytest.mark.slow
def test_every_lie_is_named(toml: Path, tmp_path: Path, fledge: Fledge) -> None:
    """Every value changed, one at a time."""
    options = "--platform", AMD64, "-o", "artifact.x"
    assert fledge("build", "-q", "-c", toml, *options).code == 0
    path = tmp_path / "artifact.x.provenance.json"
    truth = json.loads(path.read_text())
    places = list(leaves(truth))
    assert len(places) > 20
    for place in places:
        lie = copy.deepcopy(truth)
        *way, last = place
        inner: Any = lie
        for key in way:
            inner = inner[key]
        old, inner[last] = inner[last], changed(inner[last])
        path.write_text(json.dumps(lie))
        done = fledge("verify", "-c", toml, "artifact.x")
        # Versions of fledge and its codecs are told, but make no difference.
        is_version = "version" in place[:-1] and "config" not in place
        assert done.code == (0 if is_version else 1), (place, done.err)
        told = done.out + done.err
        if last in ("name", "uri") and "resolvedDependencies" in place:
            assert f"{name(place, truth)}: recorded nothing, here {old}\n" in told, place
        elif last == "SOURCE_DATE_EPOCH":
            times = f"recorded {inner[last]}, and paths in the artifact have {old}\n"
            assert f"{name(place, truth)}: {times}" in told
        else:
            claim = f"{name(place, truth)}: recorded {inner[last]}, here {old}\n"
            assert claim in told, (place, told)
    path.write_text(json.dumps(truth))
    assert fledge("verify", "-c", toml, "artifact.x").code == 0


@pytest.mark.slow
def test_what_is_removed_or_invented_is_named(toml: Path, tmp_path: Path) -> None:
    artifact = fledge.build(toml, tmp_path / "artifact.x", platform=AMD64)
    path = provenance.path_beside(artifact.path)
    truth = json.loads(path.read_text())

    def claims(change: Callable[[dict[str, Any]], object]) -> str:
        lie = copy.deepcopy(truth)
        change(lie)
        path.write_text(json.dumps(lie))
        verification = fledge.verify(artifact.path, toml)
        assert not verification.equal
        return "\n".join((*verification.false_claims, verification.problem))

    def dependencies(lie: dict[str, Any]) -> list[Any]:
        found = lie["predicate"]["buildDefinition"]["resolvedDependencies"]
        assert isinstance(found, list)
        return found

    invented = {"name": "mapping", "uri": "secret", "digest": {"sha256": OTHER_DIGEST}}
    removed = dependencies(truth)[-1]["uri"]
    assert removed in claims(lambda lie: dependencies(lie).pop())
    assert "secret" in claims(lambda lie: dependencies(lie).append(invented))
    assert "another order" in claims(lambda lie: dependencies(lie).reverse())
    subject = {"name": "other", "digest": {"sha256": OTHER_DIGEST}}
    assert "subject" in claims(lambda lie: lie["subject"].append(subject))
    assert "builder" in claims(
        lambda lie: lie["predicate"]["runDetails"]["builder"].update(id="https://example.org")
    )
    assert "invocation" in claims(lambda lie: lie["predicate"]["runDetails"].update(invocation="x"))


def test_the_command_names_the_lie(tmp_path: Path, fledge: Fledge) -> None:
    project.make(tmp_path)
    assert fledge("build", "-q", "-o", "x.gz").code == 0
    path = tmp_path / "x.gz.provenance.json"
    path.write_text(path.read_text().replace('"uri": "kestrel"', '"uri": "kestrel2"'))
    done = fledge("verify", "x.gz")
    assert done.code == 1
    assert done.out.startswith("different: x.gz\n")
    assert "agent kestrel2: digest.sha256: recorded" in done.out


@pytest.mark.parametrize(
    ("invented", "count"),
    [
        ({f"x{number}": number for number in range(5000)}, 1000),
        ({"k" * 1_000_000: {str(number): number for number in range(500)}}, 500),
        ({"k": "v" * 1_000_000, "other": True}, 2),
    ],
    ids=["many", "long key", "long value"],
)
def test_what_is_told_of_a_hostile_record_has_a_bound(
    invented: dict[str, object], count: int, tmp_path: Path, fledge: Fledge
) -> None:
    project.make(tmp_path)
    assert fledge("build", "-q", "-o", "x.gz").code == 0
    path = tmp_path / "x.gz.provenance.json"
    statement = json.loads(path.read_text())
    path.write_text(json.dumps({**statement, "invented": invented}))
    done = fledge("verify", "x.gz")
    assert done.code == 1
    assert done.out.count("  invented.") == count
    assert ("  and more\n" in done.out) == (count == 1000)
    assert len(done.out) < 1_000_000


@pytest.mark.parametrize("scheme", ["file", "http"])
def test_a_record_names_no_file_and_no_host(
    scheme: str, github: Server, tmp_path: Path, fledge: Fledge
) -> None:
    """Whoever gives an artifact away cannot have files read or URLs asked for."""
    project.make(tmp_path, '[agent]\nversion = "v1.2.3"\n')
    publish(github, {"kestrel": KESTREL})
    assert fledge("build", "-q", "-o", "x.gz").code == 0
    secret = project.write(tmp_path, "secret", b"#!secret")
    github.answers["/secret"] = content(b"#!secret")
    url = secret.as_uri() if scheme == "file" else github.url("/secret")
    path = tmp_path / "x.gz.provenance.json"
    statement = json.loads(path.read_text())
    [agent] = [
        item
        for item in statement["predicate"]["buildDefinition"]["resolvedDependencies"]
        if item["name"] == "agent"
    ]
    agent["uri"] = url
    agent["digest"]["sha256"] = images.sha256(b"#!secret")
    path.write_text(json.dumps(statement))
    for options in ((), ("--offline",)):
        done = fledge("verify", "x.gz", *options)
        assert done.code in (1, 3)
        assert "#!secret" not in done.out + done.err
    assert "/secret" not in [request.path for request in github.seen]


def test_the_lock_says_where_the_agent_comes_from(
    github: Server, tmp_path: Path, fledge: Fledge
) -> None:
    project.make(tmp_path, '[agent]\nversion = "latest"\n')
    publish(github, {"kestrel": KESTREL})
    assert fledge("lock").code == 0
    assert fledge("build", "-q", "-o", "x.gz").code == 0
    done = fledge("verify", "x.gz", "--offline")
    assert done.code == 0, done.out + done.err


# The platform of an initramfs


@pytest.mark.slow
def test_more_mapped_files_than_provenance_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mappings, "MAX_LISTED", 20)
    for number in range(21):
        project.write(tmp_path, f"many/{number // 10}/{number}", b"%d" % number)
    toml = project.make(tmp_path, project.LOCAL_AGENT, '[mappings]\nmany = "/many"\n')
    artifact = fledge.build(toml, tmp_path / "plugin.cpio.gz")
    assert sum(each.role == "mapping" for each in artifact.inputs) == 1
    assert provenance.path_beside(artifact.path).stat().st_size < 10_000
    assert fledge.inspect(artifact.path).has_provenance
    assert fledge.verify(artifact.path, toml).equal

    (tmp_path / "many/0/7").write_bytes(b"changed")
    verification = fledge.verify(artifact.path, toml)
    assert "mapping #files" in [line.partition(":")[0] for line in verification.false_claims]
    assert verification.difference
    assert [change.path for change in verification.difference.changes] == [b"many/0/7"]


def test_a_platform_that_the_busybox_is_not_for(tmp_path: Path, fledge: Fledge) -> None:
    project.make(tmp_path)
    done = fledge("build", "--platform", "linux/arm64")
    assert done.code == 2
    assert "the busybox is for amd64, not for linux/arm64" in done.err
    assert not (tmp_path / "plugin.cpio.gz").exists()
    assert fledge("lock").code == 0
    amd64, arm64 = ("--platform", "linux/amd64"), ("--platform", "linux/arm64")
    for command, platforms in [("lock", arm64), ("lock", (*amd64, *arm64)), ("fetch", arm64)]:
        done = fledge(command, *platforms)
        assert done.code == 2
        assert "the busybox is for amd64, not for linux/arm64" in done.err
    assert fledge("fetch", *amd64).code == 0


def test_the_platform_of_an_initramfs_is_that_of_its_busybox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever machine builds it: the provenance is the same."""
    toml = project.make(tmp_path)
    texts = set()
    for machine in ("x86_64", "aarch64"):
        monkeypatch.setattr("fledge.oci.manifest.machine", lambda machine=machine: machine)
        artifact = fledge.build(toml, tmp_path / "x.gz")
        assert str(artifact.platform) == AMD64
        texts.add(provenance.path_beside(artifact.path).read_text())
    assert len(texts) == 1
