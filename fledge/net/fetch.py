"""Downloads: one `Fetcher` for everything that fledge gets from elsewhere.

No server is trusted: how much it may send, how often it may fail and how long it may stall
are bounded, and memory does not grow with the size of a file.
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote_to_bytes, urlsplit

import msgspec

from fledge.errors import ConfigError, CorruptError, NetworkError
from fledge.net.transport import (
    CHUNK,
    MAX_ANSWER,
    MIN_PROGRESS,
    TRY_LATER,
    Headers,
    Passing,
    TooLargeError,
    Transport,
    http_date,
    printable_url,
    read_body,
)
from fledge.report import Reporter, Transfer
from fledge.store.cache import Cache, Partial
from fledge.tree.content import Blob

MAX_SIZE = (1 << 32) - 1
"""Bytes in a file, unless the caller knows better: newc has 32 bits for its size."""
MAX_TRIES = 5
"""How often in a row to try without progress."""
MAX_WAIT = 60.0
"""Seconds between two tries, whatever Retry-After asks for."""

CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", re.ASCII)

T = TypeVar("T")


class _Wanted(msgspec.Struct, frozen=True):
    """What to ask for, and how many bytes of it to take at most."""

    url: str
    headers: Headers
    limit: int


class Fetcher(msgspec.Struct, frozen=True):
    """What all downloads of a build share. Threads may use one together.

    Every method takes an http, https or file URL, raises `ConfigError` for any other or if
    the file is not there, and `NetworkError` if the server does not give what it is asked
    for. Passing failures are tried again; the first pause is ``backoff`` seconds, and each
    further one twice as long.
    """

    cache: Cache
    reporter: Reporter
    offline: bool = False
    backoff: float = 0.5
    _transport: Transport = msgspec.field(default_factory=Transport)

    def fetch(
        self,
        url: str,
        label: str,
        sha256: str | None = None,
        headers: Headers | None = None,
        limit: int = MAX_SIZE,
    ) -> Blob:
        """The file at the URL, from the cache if its digest is known and in there.

        ``label`` names it for people. An ``Authorization`` header goes to no other host
        (RFC 9110 section 15.4). Raises `CorruptError` if the file has another digest,
        `TooLargeError` if a server sends more than ``limit`` bytes.
        """
        local = _scheme(url) == "file"
        if sha256 and (blob := self.cache.find(sha256)):
            return blob
        if self.offline and not local:
            raise _offline(url, label, sha256)

        def waiting() -> None:
            self.reporter.note(f"{label}: waiting for another build that downloads it")

        with self.cache.partial(sha256, waiting) as partial:
            if sha256 and (blob := self.cache.find(sha256)):
                return blob
            # They are equal if a build was killed when all was there.
            if partial.sha256 != sha256:
                with self.reporter.transfer(label) as transfer:
                    if local:
                        _copy(url, partial, transfer)
                    else:
                        wanted = _Wanted(url, headers or {}, limit)
                        self._download(wanted, sha256, partial, transfer)
            if sha256 and partial.sha256 != sha256:
                actual = partial.sha256
                partial.restart()
                raise CorruptError(
                    f"{label}: {printable_url(url)} has sha256 {actual}, expected {sha256}",
                    "Either that file has changed or the checksum is wrong;"
                    " compare it with the one that its publisher gives.",
                )
            return self.cache.add(partial)

    def text(
        self, url: str, headers: Mapping[str, str] | None = None, limit: int = MAX_ANSWER
    ) -> str:
        """A small answer, of at most ``limit`` bytes of UTF-8; it is not cached."""
        try:
            return self._read(url, headers or {}, limit).decode()
        except UnicodeDecodeError as error:
            raise _unexpected(url, "text") from error

    def json(self, url: str, headers: Headers | None = None, limit: int = MAX_ANSWER) -> object:
        """A small answer of at most ``limit`` bytes of JSON; it is not cached."""
        try:
            return json.loads(self._read(url, headers or {}, limit))
        except (ValueError, RecursionError) as error:
            raise _unexpected(url, "JSON") from error

    def _read(self, url: str, headers: Headers, limit: int) -> bytes:
        if _scheme(url) == "file":
            return _joined(_local(url, limit))
        if self.offline:
            raise NetworkError(
                f"{printable_url(url)} cannot be looked up offline",
                "Pin what is looked up there in fledge.toml, or run without --offline.",
            )

        def attempt() -> bytes:
            with self._transport.open(url, headers, {}, {HTTPStatus.OK}) as (response, where):
                return _joined(read_body(response, where, 0, response.raw.length_remaining, limit))

        return self._persist(attempt, lambda: 0)

    def _download(
        self, wanted: _Wanted, sha256: str | None, partial: Partial, transfer: Transfer
    ) -> None:
        """Fill the partial, going on from what it holds where that is safe."""
        validator = ""
        resumed = False

        def attempt() -> None:
            nonlocal validator, resumed
            range_headers = {}
            accepted = {HTTPStatus.OK}
            if partial.size and (sha256 or validator):
                range_headers["Range"] = f"bytes={partial.size}-"
                accepted |= {HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE}
                if not sha256:
                    range_headers["If-Range"] = validator
            asked = self._transport.open(wanted.url, wanted.headers, range_headers, accepted)
            with asked as (response, where):
                total: int | None
                if response.status_code == HTTPStatus.OK:
                    partial.restart()
                    validator = _validator(response.headers)
                    total = response.raw.length_remaining
                else:
                    # It may be a 416, or another part than the one asked for.
                    part = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
                    if not part or int(part[1]) != partial.size:
                        partial.restart()
                        raise Passing(NetworkError(f"{where}: cannot be resumed", TRY_LATER), 0)
                    resumed = True
                    total = None if part[2] == "*" else int(part[2])
                transfer.restart(partial.size, total)
                try:
                    for piece in read_body(response, where, partial.size, total, wanted.limit):
                        partial.write(piece)
                        transfer.advance(len(piece))
                except TooLargeError:
                    partial.restart()  # there is nothing to go on with
                    raise

        self._persist(attempt, lambda: partial.size)
        if resumed and sha256 not in (None, partial.sha256):
            where = printable_url(wanted.url)
            self.reporter.note(f"{where}: wrong checksum; downloading it from zero")
            partial.restart()
            self._persist(attempt, lambda: partial.size)

    def _persist(self, attempt: Callable[[], T], size: Callable[[], int]) -> T:
        """Call ``attempt`` until it works, fails for good, or `MAX_TRIES` in a row bring nothing.

        ``size`` is how much there is so far. Only what exceeds the most there ever was counts
        as progress, so the number of tries is bounded by the size of the file.
        """
        most = size()
        failures = 0
        while True:
            try:
                return attempt()
            except Passing as passing:
                failures += 1
                if size() >= most + MIN_PROGRESS:
                    most = size()
                    failures = 1
                if failures == MAX_TRIES:
                    raise passing.error from passing
                pause = self.backoff * 2 ** (failures - 1) if passing.wait is None else passing.wait
                pause = min(pause, MAX_WAIT)
                self.reporter.note(f"{passing.error.message}; trying again in {pause:g} s")
                time.sleep(pause)


def _validator(headers: Mapping[str, str]) -> str:
    """What to send as If-Range to go on with this answer; empty if nothing is safe.

    That is a strong entity tag or, where there is none of any kind, a modification time that
    is a second older than the answer (RFC 9110 sections 13.1.5 and 8.8.2.2).
    """
    if tag := headers.get("ETag"):
        return tag if tag.startswith('"') else ""
    modified = headers.get("Last-Modified", "")
    changed, sent = http_date(modified), http_date(headers.get("Date", ""))
    return modified if changed and sent and sent - changed >= timedelta(seconds=1) else ""


def _joined(pieces: Iterable[bytes]) -> bytes:
    # Not b"".join: it holds all pieces at once, and a server may send single bytes.
    joined = bytearray()
    for piece in pieces:
        joined += piece
    return bytes(joined)


def _copy(url: str, partial: Partial, transfer: Transfer) -> None:
    partial.restart()
    transfer.restart(0, None)
    for piece in _local(url, MAX_SIZE):
        partial.write(piece)
        transfer.advance(len(piece))


def _local(url: str, limit: int) -> Iterator[bytes]:
    """The bytes of a file on this machine (RFC 8089)."""
    where = printable_url(url)
    parts = urlsplit(url)
    path = Path(os.fsdecode(unquote_to_bytes(parts.path)))
    if parts.netloc not in ("", "localhost") or not path.is_absolute():
        raise ConfigError(f"{where} is not on this machine", "Write file:///ABSOLUTE/PATH.")
    try:
        # Before it is opened: that would wait for somebody to write to a fifo.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{where} is not a regular file", "Name a file.")
        left = limit
        with path.open("rb", buffering=0) as file:
            while piece := file.read(CHUNK):
                left -= len(piece)
                if left < 0:
                    raise ConfigError(f"{where} has more than {limit} bytes", "Name a smaller one.")
                yield piece
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise ConfigError(f"{where} cannot be read: {reason}", "Check the path.") from error


def _scheme(url: str) -> str:
    """``http``, ``https`` or ``file``. Raises `ConfigError` if it is no such URL."""
    with suppress(ValueError):
        parts = urlsplit(url)
        web = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        if web or parts.scheme == "file":
            return parts.scheme
    # Where the password ends is not certain in what is no URL.
    raise ConfigError(
        f"{printable_url(re.sub('//.*@', '//', url))} is not a URL that can be downloaded",
        "Write one that begins with https://, http:// or file:///.",
    )


def _offline(url: str, label: str, sha256: str | None) -> NetworkError:
    if not sha256:
        return NetworkError(
            f"{label}: {printable_url(url)} cannot be looked up offline without a checksum",
            "Add its sha256 to fledge.toml, or run without --offline.",
        )
    return NetworkError(
        f"{label}: {printable_url(url)} (sha256 {sha256}) is not in the cache",
        "Run once without --offline.",
    )


def _unexpected(url: str, kind: str) -> NetworkError:
    return NetworkError(
        f"{printable_url(url)}: the answer is not {kind}",
        "Check the URL, and whether a proxy or a login page answers in place of the server.",
    )
