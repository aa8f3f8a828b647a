"""Drives Chromium, as `scripts/test-tools` installs it, without a window and without a network.

chromedriver speaks WebDriver (w3.org/TR/webdriver2): requests with JSON.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

TAB, ENTER, ESCAPE, BACKSPACE = "\ue004", "\ue007", "\ue00c", "\ue003"
LEFT, RIGHT = "\ue012", "\ue014"
"""Keys, by their codes in WebDriver (section 17.4.2)."""


class Browser:
    """A browser with one page."""

    def __init__(self, address: str) -> None:
        """``address`` is that of the session at the driver."""
        self._address = address
        self._http = requests.Session()
        self._http.trust_env = False  # no proxy

    def _post(self, command: str, **parameters: object) -> Any:
        done = self._http.post(f"{self._address}/{command}", json=parameters, timeout=60)
        value = done.json()["value"]
        assert done.ok, value
        return value

    def open(self, page: Path) -> None:
        """Open a file, and wait until it is loaded."""
        self._post("url", url=page.as_uri())

    def run(self, script: str, *arguments: object) -> Any:
        """Run a script in the page, which may ``return`` something."""
        return self._post("execute/sync", script=script, args=arguments)

    def run_until(self, script: str) -> None:
        """Run a script until it returns something true, for at most 30 seconds."""
        deadline = time.monotonic() + 30
        while not self.run(script):
            assert time.monotonic() < deadline, script

    def text(self, selector: str) -> str:
        """Return the text of the first element, as a person sees it, on one line."""
        text: str = self.run("return document.querySelector(arguments[0]).innerText", selector)
        return " ".join(text.split())

    def texts(self, selector: str) -> list[str]:
        """Return the text of every element."""
        script = "return [...document.querySelectorAll(arguments[0])].map((each) => each.innerText)"
        found: list[str] = self.run(script, selector)
        return found

    def focus(self, selector: str) -> None:
        """Give the first element the focus of the keyboard."""
        self.run("document.querySelector(arguments[0]).focus()", selector)

    def click(self, selector: str) -> None:
        """Click the first element."""
        self.run("document.querySelector(arguments[0]).click()", selector)

    def press(self, key: str) -> None:
        """Press a key, and release it."""
        actions = [{"type": each, "value": key} for each in ("keyDown", "keyUp")]
        self._post("actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def resize(self, width: int, height: int, *, mobile: bool = False) -> None:
        """Set the size of the page in pixels; ``mobile``: as a phone has it."""
        self._command(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile},
        )

    def prefer(self, scheme: str) -> None:
        """Prefer a ``light`` or ``dark`` colour scheme."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._command("Emulation.setEmulatedMedia", {"features": features})

    def _command(self, command: str, parameters: dict[str, object]) -> None:
        self._post("goog/cdp/execute", cmd=command, params=parameters)

    def console(self) -> list[str]:
        """Return what was said on the console since the last call."""
        return [entry["message"] for entry in self._post("se/log", type="browser")]

    def requests(self) -> list[str]:
        """Return the URLs that the browser has asked for since the last call."""
        entries = self._post("se/log", type="performance")
        events = [json.loads(entry["message"])["message"] for entry in entries]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start a browser, which keeps its files in the folder ``profile``."""
    driver = subprocess.Popen(
        ["/usr/bin/chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert driver.stdout
        started = next(line for line in driver.stdout if "started successfully on port" in line)
        address = f"http://127.0.0.1:{started.split()[-1].rstrip('.')}/session"
        chromium = {
            "binary": "/usr/bin/chromium",
            "args": [*FLAGS, f"--user-data-dir={profile}"],
        }
        wanted = {
            "goog:chromeOptions": chromium,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        with requests.Session() as http:
            http.trust_env = False
            asked = {"capabilities": {"alwaysMatch": wanted}}
            session = http.post(address, json=asked, timeout=60).json()["value"]
            assert "sessionId" in session, session
            try:
                yield Browser(f"{address}/{session['sessionId']}")
            finally:
                http.delete(f"{address}/{session['sessionId']}", timeout=60)
    finally:
        driver.terminate()
        driver.communicate()
