"""The documentation site: it builds, its links lead somewhere, and it says what the code says."""

from __future__ import annotations

import ast
import os
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "fledge"


class Links(HTMLParser):
    """The links of a page, and the places in it to which links can lead."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id" and value:
                self.places.add(value)
            elif name in ("href", "src") and value:
                self.links.append(value)


@pytest.mark.slow
def test_every_link_of_the_site_leads_somewhere(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    site = tmp_path / "site"
    pages = {path: Links(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 35
    broken = [
        f"{page.relative_to(site)}: {link}"
        for page, found in pages.items()
        for link in found.links
        if not _leads_somewhere(link, page, pages)
    ]
    assert broken == []


def _leads_somewhere(link: str, page: Path, pages: dict[Path, Links]) -> bool:
    """Whether a link within the site has a target. Others are not followed."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return parts.scheme == "https"
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    target = target / "index.html" if target.is_dir() else target
    if not parts.fragment:
        return target.is_file()
    return target in pages and unquote(parts.fragment) in pages[target].places


def test_links_between_files_lead_somewhere() -> None:
    """As GitHub follows them: from README.md, and out of docs/."""
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for link in re.findall(r"\]\(([^)#\s]+)", text):
            if not urlsplit(link).scheme:
                assert (page.parent / link).exists(), f"{page}: {link}"


def test_the_variables_are_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / "scripts/environment_page.py"))
    text = script["PAGE"].read_text()
    assert script["page"](text) == text, "run scripts/reference"


def test_every_message_under_troubleshooting_is_one_of_the_code() -> None:
    page = (ROOT / "docs/guides/troubleshooting.md").read_text()
    messages = re.findall(r"^\| `(.*?)` \|", page, re.MULTILINE)
    assert len(messages) > 40
    templates = _templates()
    missing = [each for each in messages if not any(_says(text, each) for text in templates)]
    assert missing == []


def _templates() -> set[str]:
    """Every text in the code, with … in place of what it is filled with."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(re.sub(r"\{\w+\}", "…", node.value))
            elif isinstance(node, ast.JoinedStr):
                parts = (
                    str(part.value) if isinstance(part, ast.Constant) else "…"
                    for part in node.values
                )
                found.add("".join(parts))
    return found


def _says(template: str, message: str) -> bool:
    """Whether a text has the words of a message, in their order."""
    place = 0
    for words in filter(None, message.split("…")):
        place = template.find(words, place)
        if place < 0:
            return False
        place += len(words)
    return True
