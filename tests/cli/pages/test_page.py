"""The pages of inspect and diff, as text: what is in them, and that names cannot do any harm."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

import fledge as library
from fledge.cli.pages import areas, page
from fledge.cli.pages.areas import Area
from fledge.cli.pages.page import Column, Page, Table
from tests.support import golden, layered, project
from tests.support.project import Fledge

MAX_PAGE = 2 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return library.build(layered.make(tmp_path), tmp_path / "disk").path


def data(html: str) -> dict[str, Any]:
    found = re.search('<script type="application/json" id="data">(.*?)</script>', html)
    assert found
    document: dict[str, Any] = json.loads(found[1])
    return document


def table(html: str, title: str) -> dict[str, Any]:
    return next(each for each in data(html)["tables"] if each["title"].startswith(title))


def make(*rows: tuple[str | int, ...], sizes: tuple[Area, ...] = ()) -> Page:
    return Page(
        title="title",
        facts=[("fact", "text")],
        notes=["note"],
        map=areas.as_json(sizes, [("group", "text")], "owner"),
        tables=[Table("Table", "text", (Column("Path", "path"),), rows)],
    )


def test_the_bytes_of_a_page(fledge: Fledge, disk: Path) -> None:
    assert fledge("inspect", disk, "--html", "one.html").code == 0
    one = (disk.parent / "one.html").read_bytes()
    assert fledge("inspect", disk, "--html", "one.html").out == ""
    assert (disk.parent / "one.html").read_bytes() == one
    shown = json.dumps(data(one.decode()), sort_keys=True)
    assert hashlib.sha256(shown.encode()).hexdigest() == golden.PAGE


def test_what_the_page_says(fledge: Fledge, disk: Path) -> None:
    fledge("inspect", disk, "--html", "page.html")
    html = (disk.parent / "page.html").read_text()
    described = json.loads(fledge("inspect", disk, "--json").out)
    found = data(html)
    facts = dict(found["facts"])
    assert facts["Content"].endswith(f"({described['content_size']} bytes)")
    assert facts["Artifact"].endswith(f"({described['size']} bytes)")
    assert sum(row[4] for row in found["map"]["areas"]) == described["content_size"]
    assert sum(row[3] for row in found["map"]["areas"]) == described["names"]["file"]
    assert sum(row[2] for row in table(html, "Sources")["rows"]) == described["content_size"]
    assert [row[1:5] for row in table(html, "Layers")["rows"]] == [
        [9, 43_500, 0, 25_000],
        [2, 30_100, 25_000, 0],
    ]
    assert table(html, "Wasted")["rows"][0] == ["/bin/tool", 20_000, "layer 1", "layer 2"]
    assert table(html, "Duplicates")["rows"] == [["/usr/lib/link\n/usr/lib/two", 8_000, 8_000]]
    assert table(html, "Privileged")["rows"] == [
        ["/bin/ping", "0755", "0:0", "cap_net_raw=ep"],
        ["/bin/su", "4755", "0:0", ""],
    ]
    assert "SHA-256" in found["notes"][0]


def test_packages(fledge: Fledge, tmp_path: Path) -> None:
    config = project.make_rootfs(tmp_path)
    text = "Metadata-Version: 2.1\nName: a-tool\nVersion: 1.2\nLicense-Expression: MIT\n"
    project.write(tmp_path, "metadata", text.encode())
    line = '[mappings]\n"metadata" = "/usr/lib/a_tool-1.2.dist-info/METADATA"\n'
    config.write_text(config.read_text().replace("[mappings]\n", line))
    disk = library.build(config, tmp_path / "disk").path
    fledge("inspect", disk, "--html", "page.html")
    assert table((tmp_path / "page.html").read_text(), "Packages")["rows"] == [
        ["a-tool", "1.2", "pypi", "MIT", "/usr/lib/a_tool-1.2.dist-info/METADATA"]
    ]


def test_the_page_says_what_is_not_known(
    fledge: Fledge, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEDGE_CACHE_DIR", str(disk.parent / "empty"))
    fledge("inspect", disk, "--html", "page.html")
    html = (disk.parent / "page.html").read_text()
    assert "not in the cache" in data(html)["notes"][0]
    assert not [each for each in data(html)["tables"] if "ayers" in each["title"]]
    (disk.parent / "disk.provenance.json").unlink()
    fledge("inspect", disk, "--html", "page.html")
    assert "No provenance" in data((disk.parent / "page.html").read_text())["notes"][0]


def test_names_are_no_html(fledge: Fledge, disk: Path) -> None:
    fledge("inspect", disk, "--html", "page.html")
    html = (disk.parent / "page.html").read_text()
    _, _, rest = html.partition('id="data">')
    written, _, _ = rest.partition("</script>")
    assert not set("<>&\n") & set(written)
    assert written.isascii()
    assert html.lower().count("</script") == 2
    rows = table(html, "Largest")["rows"]
    assert "/names/x<script>alert(1)</script>" in [row[0] for row in rows]
    assert {"/names/\\u202egpj.exe", "/names/\\xff\\n\\x1b[2J"} < {row[0] for row in rows}


def test_only_the_own_script_and_style_may_run() -> None:
    html = page.render(make())
    policy = re.search('Content-Security-Policy" content="([^"]*)"', html)
    assert policy
    for kind in ("script", "style"):
        inline = re.search(rf"<{kind}>(.*?)</{kind}>", html, re.DOTALL)
        assert inline
        digest = b64encode(hashlib.sha256(inline[1].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none';")
    assert "@@" not in html
    assert "http" not in html.replace("http-equiv", "")


def test_a_table_has_no_more_rows_than_fit() -> None:
    rows = [("x" * 290,)] * 2000
    found = table(page.render(make(*rows)), "Table")
    assert len(found["rows"]) + found["more"] == 2000
    assert 300 < len(found["rows"]) < 420


@pytest.mark.slow
@pytest.mark.parametrize("character", [b"\xff", "\U0001f600".encode()])
def test_a_map_of_many_files_is_small(character: bytes) -> None:
    name = character * (200 // len(character))
    files = tuple(
        Area(b"%d/%s%d/%s%d" % (n % 7, name, n % 1000, name, n), n % 3, (n % 500,))
        for n in range(20_000)
    )
    html = page.render(make(sizes=files))
    assert len(html) < MAX_PAGE // 2 + 100_000
    found = data(html)["map"]
    assert sum(row[4] for row in found["areas"]) == sum(file.sizes[0] for file in files)
    assert sum(row[3] for row in found["areas"]) == len(files)
    assert len(found["areas"]) > 500
    assert all(parent < number for number, (parent, _) in enumerate(found["folders"]) if number)


def test_an_artifact_without_files() -> None:
    found = data(page.render(make()))["map"]
    assert (found["folders"], found["areas"]) == ([[0, ""]], [])


def test_a_difference(fledge: Fledge, disk: Path) -> None:
    folder = disk.parent
    project.write(folder, "own.conf", b"d" * 70)
    library.build(folder / "fledge.toml", folder / "new")
    assert fledge("diff", disk, "new", "--html", "page.html").code == 1
    html = (folder / "page.html").read_text()
    assert data(html)["title"] == "disk → new"
    assert table(html, "Changed")["rows"] == [["/etc/own.conf", 50, 70, 20]]
    assert table(html, "Added")["rows"] == table(html, "Removed")["rows"] == []
    assert data(html)["map"]["areas"] == [[1, "own.conf", 2, 1, 70, 50, 70]]
    assert dict(data(html)["facts"])["Change"] == "+20 bytes"


def test_no_difference(fledge: Fledge, disk: Path) -> None:
    assert fledge("diff", disk, disk, "--html", "page.html").code == 0
    assert data((disk.parent / "page.html").read_text())["map"]["areas"] == []


def test_a_page_never_replaces_an_artifact(fledge: Fledge, disk: Path) -> None:
    before = disk.read_bytes()
    (disk.parent / "link").symlink_to(disk)
    for arguments in (
        ("inspect", "disk", "--html", "disk"),
        ("inspect", "disk", "--html", "link"),
        ("diff", "disk", "disk", "--html", "disk"),
    ):
        done = fledge(*arguments)
        assert done.code == 2
        assert "would replace the artifact" in done.err
    assert disk.read_bytes() == before


def test_a_page_in_a_folder_that_does_not_exist(fledge: Fledge, disk: Path) -> None:
    done = fledge("inspect", disk, "--html", "none/page.html")
    assert (done.code, "none is not a folder" in done.err) == (2, True)
