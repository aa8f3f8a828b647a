"""``fledge push`` and ``fledge pull``: arguments, and how failures end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.oci_registry import OciRegistry
from tests.support.project import Fledge


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["push"], "Missing argument 'ARTIFACT... REFERENCE'"),
        (["push", "web.img"], "name the files first"),
        (["push", "none.img", "127.0.0.1:1/web:1"], "none.img could not be read"),
        (["push", "none.img", "web.img", "oci:x"], "oci:x is not in a registry"),
        (["push", "none.img", "127.0.0.1:1/web@sha256:" + "0" * 64], "names a digest"),
        (["pull"], "Missing argument 'REFERENCE'"),
        (["pull", "a", "b"], "unexpected extra argument"),
        (["pull", "docker-archive:x.tar"], "is not in a registry"),
        (["pull", "127.0.0.1:1/web:1", "--platform", "sun"], "is not a platform"),
    ],
)
def test_usage(arguments: list[str], words: str, fledge: Fledge) -> None:
    done = fledge(*arguments)
    assert done.code == 2
    assert words in " ".join(done.err.split())
    assert done.out == ""


@pytest.mark.slow
def test_names_and_paths_are_all_that_is_printed(
    web: Path, served: OciRegistry, fledge: Fledge, tmp_path: Path
) -> None:
    done = fledge("push", web, f"{served.host}/web")
    digest = served.repository("web").tags["latest"]
    assert (done.code, done.out) == (0, f"{served.host}/web:latest@{digest}\n")
    done = fledge("pull", f"{served.host}/web", "--json")
    [entry] = json.loads(done.out)
    assert entry["path"] == "web.img"
    assert {path.name for path in tmp_path.glob("web.*")} == {
        "web.img",
        "web.img.provenance.json",
        "web.img.manifest.json",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["pull", "HOST/web:none"], 3, "has no 'none'"),
        (["pull", "HOST/web:1", "-o", "none"], 2, "none is not a folder"),
        (["pull", "HOST/web:1", "--offline"], 3, "the tag cannot be looked up offline"),
        (["pull", "HOST/web:lie"], 4, "is not the name of a file"),
        (["pull", "HOST/web:1", "--platform", "riscv64"], 2, "is for linux/amd64"),
    ],
)
@pytest.mark.slow
def test_failures(
    arguments: list[str],
    code: int,
    words: str,
    stocked: OciRegistry,
    fledge: Fledge,
    tmp_path: Path,
) -> None:
    manifest = stocked.manifest("web", "1")
    manifest["annotations"]["org.opencontainers.image.title"] = "../web.img"
    stocked.put("web", manifest, "lie")
    before = set(tmp_path.iterdir())
    done = fledge(*(each.replace("HOST", stocked.host) for each in arguments))
    assert done.code == code
    assert words in done.err
    assert "Traceback" not in done.err
    assert set(tmp_path.iterdir()) == before
