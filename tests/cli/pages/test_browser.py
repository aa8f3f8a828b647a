"""The pages in a real browser: by keyboard, on a phone, in the dark, and with hostile names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import fledge as library
from fledge.cli.pages.artifact import artifact_page
from fledge.cli.pages.difference import difference_page
from fledge.cli.pages.page import write
from fledge.operations.sizes import size_changes
from tests.support import layered, project
from tests.support.browser import BACKSPACE, ENTER, ESCAPE, LEFT, RIGHT, TAB, Browser, browser

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def page(tmp_path: Path, driver: Browser) -> Iterator[Path]:
    """A page of an artifact, opened. In the end, nothing was said on the console."""
    disk = library.build(layered.make(tmp_path), tmp_path / "disk").path
    path = tmp_path / "page.html"
    write(path, artifact_page(library.analyze(disk), disk))
    show(driver, path)
    yield path
    assert driver.console() == []


def show(driver: Browser, page: Path) -> None:
    driver.resize(1200, 900)
    driver.prefer("light")
    driver.requests()
    driver.open(page)
    driver.run_until("return document.querySelector('#map button') !== null")


def focused(driver: Browser) -> str:
    label: str = driver.run("return document.activeElement.getAttribute('aria-label')")
    return label


def names(driver: Browser) -> list[str]:
    return driver.texts("#list tbody td:first-child")


def test_nothing_is_fetched_and_no_name_becomes_html(driver: Browser, page: Path) -> None:
    assert driver.requests() == [page.as_uri()]
    assert driver.run("return document.title") == "disk - fledge"
    assert driver.run("return document.scripts.length") == 2
    driver.click("#list button")
    tables = driver.text("#tables")
    assert "/names/x<script>alert(1)</script>" in tables
    assert "/names/\"'&<!--" in tables
    assert "/names/\\u202egpj.exe" in tables
    # The policy of the page would stop a script that came in, too.
    driver.run(
        "const made = document.createElement('div');"
        'made.innerHTML = \'<img src="https://example.invalid/x" onerror="window.stolen = 1">\';'
        "document.body.append(made)"
    )
    refused: list[str] = []
    while len(refused) < 2:  # the image, and what it would run
        refused += driver.console()
    assert all("Content Security Policy" in message for message in refused)
    assert driver.run("return window.stolen") is None


def test_figures(driver: Browser, page: Path) -> None:
    assert page.stat().st_size < 2 << 20
    found = library.analyze(page.with_name("disk"))
    assert driver.text("#list caption") == "/: 47.8 KiB in 13 files"
    assert len(found.files) == 13
    assert names(driver)[:3] == ["bin/", "usr/", "names/"]
    cells = "[...document.querySelectorAll('#list td[data-value]')]"
    assert (
        driver.run(f"return {cells}.reduce((sum, each) => sum + +each.dataset.value, 0)")
        == found.summary.content_size
    )
    assert "layer 2 29.4 KiB" in driver.text("#legend")


def test_by_keyboard(driver: Browser, page: Path) -> None:
    driver.run("document.querySelector('#trail').scrollIntoView()")
    driver.focus("input[value=group]")
    driver.press(TAB)
    assert focused(driver).startswith("bin/, 29.8 KiB")
    driver.press(RIGHT)
    assert focused(driver).startswith("usr/")
    driver.press(LEFT)
    assert focused(driver).startswith("bin/")
    driver.press(ENTER)
    assert driver.text("#trail") == "/bin"
    assert names(driver) == ["tool", "su", "kestrel", "ping"]
    assert focused(driver) == "tool, 29.3 KiB, layer 2"
    driver.press(ENTER)
    assert names(driver)[0] == "tool"
    driver.press(BACKSPACE)
    assert names(driver)[0] == "bin/"
    driver.press(ESCAPE)
    assert names(driver)[0] == "bin/"


def test_by_source(driver: Browser, page: Path) -> None:
    driver.focus("input[value=folder]")
    driver.press(RIGHT)
    assert names(driver)[:2] == ["layer 2/", "layer 1/"]
    driver.click("#list button")
    assert names(driver) == ["bin/"]
    assert driver.text("#list caption") == "layer 2/: 29.4 KiB in 2 files"


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_on_a_phone_nothing_is_wider_than_the_page(driver: Browser, page: Path, width: int) -> None:
    driver.resize(width, 800, mobile=width < 600)
    driver.run_until(f"return document.querySelector('#map').offsetWidth < {width}")
    assert driver.run("return document.documentElement.scrollWidth") <= width
    heights = "[...document.querySelectorAll('label')].map((each) => each.offsetHeight)"
    assert min(driver.run(f"return {heights}")) >= 32


def test_light_and_dark_are_readable(driver: Browser, page: Path) -> None:
    contrast = """
        const luminance = (text) => {
          const parts = text.match(/[0-9.]+/g).slice(0, 3).map((part) => part / 255);
          const linear = parts.map((c) => (
            c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4
          ));
          return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
        };
        return [...document.querySelectorAll("button.cell, .cell.inner")].map((cell) => {
          const style = getComputedStyle(cell);
          const both = [luminance(style.color), luminance(style.backgroundColor)].sort();
          return cell.classList.contains("tiny") ? 21 : (both[1] + 0.05) / (both[0] + 0.05);
        });
    """
    seen = set()
    for scheme in ("light", "dark"):
        driver.prefer(scheme)
        seen.add(driver.run("return getComputedStyle(document.body).backgroundColor"))
        assert min(driver.run(contrast)) >= 4.5  # WCAG 2.1, 1.4.3
    assert len(seen) == 2


def test_a_difference(tmp_path: Path, driver: Browser) -> None:
    config = layered.make(tmp_path)
    before = library.build(config, tmp_path / "before").path
    project.write(tmp_path, "own.conf", b"d" * 70)
    after = library.build(config, tmp_path / "after").path
    found = library.diff(before, after)
    sizes = size_changes(before, after, found)
    write(tmp_path / "page.html", difference_page(before, after, found, sizes))
    show(driver, tmp_path / "page.html")
    assert driver.text("#list tbody tr") == "etc/ 50 bytes 70 bytes +20 bytes 1"
    assert driver.text("#list caption") == "/: 1 file differs"
    assert "Group by" not in driver.text("main")
    assert driver.console() == []
