"""Asks a server in a guest until it answers."""

from __future__ import annotations

import http.client
import threading
from urllib.parse import SplitResult, urlsplit

from fledge.errors import ConfigError
from fledge.machine.network import LOOPBACK

PAUSE = 0.5
"""Seconds between two requests."""

PATIENCE = 10
"""Seconds to wait for an answer: an emulated guest is slow."""


def parse(url: str) -> SplitResult:
    """Parse the URL of a server in a guest. Raises `ConfigError`."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme == "http" and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if url.lower().startswith("https:"):
        raise ConfigError(
            f"{url!r} cannot be probed: fledge speaks http to a guest, and not TLS",
            "Probe an http URL of the guest, or wait for a line of its console with --expect.",
        )
    if not valid or any(not 0x20 < ord(each) < 0x7F for each in url):
        raise ConfigError(
            f"{url!r} is not a URL that can be probed",
            "Write an http URL with a published port, such as http://127.0.0.1:8080/.",
        )
    return parts


class Probe:
    """Requests a URL of this host, again and again, until the answer is 2xx or 3xx.

    Redirects are not followed: where they lead is the guest's word.
    """

    def __init__(self, url: SplitResult) -> None:
        self._url = url
        self._stop = threading.Event()
        self.answer = ""
        """The last answer, or why there was none."""
        self.succeeded = False

    def __enter__(self) -> Probe:
        return self

    def start(self) -> None:
        """Begin to ask. Before, what answers may be another program that has the port."""
        threading.Thread(target=self._run, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        # Not joined: a request may wait for its answer, and nothing depends on it any more.
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(PAUSE):
            try:
                status = self._request()
            except (OSError, http.client.HTTPException) as error:
                self.answer = str(error) or type(error).__name__
                continue
            self.answer = f"status {status}"
            if 200 <= status < 400:
                self.succeeded = True
                return

    def _request(self) -> int:
        """Return the status of an answer. Reads no body, which may have no end."""
        # Not the name: localhost may be ::1 first, where something else may answer.
        connection = http.client.HTTPConnection(LOOPBACK, self._url.port, timeout=PATIENCE)
        try:
            target = self._url._replace(scheme="", netloc="", fragment="").geturl() or "/"
            host = self._url.netloc.rpartition("@")[2]
            connection.request("GET", target, headers={"Host": host})
            return connection.getresponse().status
        finally:
            connection.close()
