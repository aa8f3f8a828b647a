"""fledge.analyze: where the bytes of an artifact come from, and which are worth a look."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

import fledge
from fledge.operations import analyze as module
from fledge.operations.analyze import Analysis, Duplicate
from tests.support import layered, project
from tests.support.project import Fledge

TREE_SIZE = 30_000 + 300 + 8_000 + 8_000 + 700 + 600 + 500 + 400 + 100
"""The bytes of all files of the image."""


def build(folder: Path, filesystem: str = "") -> Path:
    return fledge.build(layered.make(folder, filesystem), folder / "disk").path


def sizes(found: Analysis) -> dict[str, int]:
    """Return the bytes of each owner."""
    total = Counter[str]()
    for file in found.files:
        total[found.owners[file.owner].name] += file.size
    return dict(total)


@pytest.mark.parametrize("filesystem", ['type = "ext4"', 'type = "erofs"', 'type = "squashfs"'])
def test_where_files_come_from(tmp_path: Path, filesystem: str) -> None:
    found = fledge.analyze(build(tmp_path, filesystem))
    by_owner = sizes(found)
    config = by_owner.pop("image config")
    assert by_owner == {
        "layer 1": TREE_SIZE - 30_100,
        "layer 2": 30_100,
        "agent": 100,
        "mapping": 50,
    }
    assert sum(by_owner.values()) + config == found.summary.content_size
    owners = {file.path: found.owners[file.owner].name for file in found.files}
    assert owners[b"bin/tool"] == owners[b"bin/ping"] == "layer 2"
    assert owners[b"usr/lib/link"] == owners[b"usr/lib/two"] == "layer 1"
    assert owners[b"bin/kestrel"] == "agent"
    assert [owner.kind for owner in found.owners[:2]] == ["layer", "layer"]


def test_what_layers_add_replace_and_waste(tmp_path: Path) -> None:
    found = fledge.analyze(build(tmp_path))
    assert found.layers
    lower, upper = found.layers
    assert (lower.files, lower.added, lower.hidden) == (9, TREE_SIZE - 30_100 + 25_000, 0)
    assert (upper.files, upper.added, upper.hidden) == (2, 30_100, 25_000)
    assert (lower.wasted, upper.wasted) == (25_000, 0)
    assert [(each.path, each.size, each.layer, each.hidden_by) for each in found.hidden] == [
        (b"bin/tool", 20_000, 0, 1),
        (b"etc/old", 5_000, 0, 1),
    ]


def test_duplicates_and_privileged_files(tmp_path: Path) -> None:
    found = fledge.analyze(build(tmp_path))
    assert found.duplicates == (Duplicate(8_000, (b"usr/lib/link", b"usr/lib/two")),)
    assert found.duplicates[0].wasted == 8_000
    assert found.all_compared
    assert [(each.path, each.mode, each.capabilities) for each in found.privileged] == [
        (b"bin/ping", 0o755, "cap_net_raw=ep"),
        (b"bin/su", 0o4755, ""),
    ]


def test_files_that_are_too_large_to_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = build(tmp_path)
    monkeypatch.setattr(module, "MAX_EXTRA_SIZE", -artifact.stat().st_size)
    found = fledge.analyze(artifact)
    assert (found.duplicates, found.all_compared) == ((), False)


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_layers_that_the_cache_lacks(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = build(tmp_path)
    known = fledge.analyze(artifact)
    assert known.layers
    if damage == "missing":
        monkeypatch.setenv("FLEDGE_CACHE_DIR", str(tmp_path / "empty"))
    else:
        blob = fledge.Session.default().cache.path(known.layers[0].diff_id)
        blob.chmod(0o600)
        blob.write_bytes(blob.read_bytes().replace(b"o" * 5_000, b"0" * 5_000))
    found = fledge.analyze(artifact)
    assert found.has_image
    assert (found.layers, found.hidden) == (None, ())
    assert sizes(found)["image"] == TREE_SIZE
    assert sizes(found)["mapping"] == 50


def test_an_artifact_without_provenance(tmp_path: Path) -> None:
    artifact = build(tmp_path)
    (tmp_path / "disk.provenance.json").unlink()
    found = fledge.analyze(artifact)
    assert sizes(found) == {"unknown": found.summary.content_size}
    assert not found.has_image


def test_an_initramfs_has_no_image(tmp_path: Path) -> None:
    project.make(tmp_path)
    found = fledge.analyze(fledge.build(tmp_path / "fledge.toml", tmp_path / "plugin").path)
    assert not found.has_image
    by_owner = sizes(found)
    assert by_owner["busybox"] == len(project.busybox())
    assert by_owner["mapping"] == sum(
        len(data) for name, data in project.FILES.items() if name != "kestrel"
    )
    assert sum(by_owner.values()) == found.summary.content_size


def test_sizes_equal_those_of_inspect(fledge: Fledge, tmp_path: Path) -> None:
    artifact = build(tmp_path)
    described = json.loads(fledge("inspect", "--json", artifact).out)
    found = module.analyze(artifact)
    files = {each["path"]: each for each in described["entries"] if each["type"] == "file"}
    assert len(files) == len(found.files) == described["names"]["file"]
    assert sum(file.size for file in found.files) == described["content_size"]
    assert found.size == described["size"]
    for file in found.files:
        entry = files["/" + file.path.decode(errors="replace")]
        assert file.size in (entry["size"], 0 if entry["links"] > 1 else entry["size"])
