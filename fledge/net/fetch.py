"""Downloads files into the cache, with retries and resumption.

Servers are not trusted: the size of a file, the number of failures and the length of a stall are
limited, and memory does not grow with the size of a file.
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
    CHUNK_SIZE,
    MAX_RESPONSE_SIZE,
    MIN_PROGRESS,
    TRY_LATER,
    Headers,
    TooLargeError,
    TransientError,
    Transport,
    http_date,
    printable_url,
    read_body,
)
from fledge.report import Reporter, Transfer, human_size
from fledge.store.cache import Cache, Partial
from fledge.tree.content import Blob
from fledge.tree.digest import Digest

MAX_DOWNLOAD_SIZE = (1 << 32) - 1
"""Maximum bytes in a file unless the caller sets another limit: newc stores sizes in 32 bits."""
MAX_TRIES = 5
"""Maximum consecutive tries without progress."""
MAX_PAUSE = 60.0
"""Maximum seconds between two tries, whatever Retry-After says."""

CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", re.ASCII)

T = TypeVar("T")


class _Request(msgspec.Struct, frozen=True):
    url: str
    headers: Headers
    limit: int
    """Maximum bytes in the file."""


class Fetcher(msgspec.Struct, frozen=True):
    """Downloads files for one build. Several threads may use it at the same time.

    Every method takes an http, https or file URL. It raises `ConfigError` for any other URL and
    for a local file that cannot be read, `NetworkError` if the server does not deliver. Transient
    failures are retried.
    """

    cache: Cache
    reporter: Reporter
    offline: bool = False
    """Read only the cache and local files."""
    backoff: float = 0.5
    """Seconds before the first retry; each further pause is twice as long."""
    _transport: Transport = msgspec.field(default_factory=Transport)

    def fetch(
        self,
        url: str,
        label: str,
        digest: Digest | None = None,
        headers: Headers | None = None,
        limit: int = MAX_DOWNLOAD_SIZE,
    ) -> Blob:
        """Return the file at a URL; download it unless the cache has a blob with its digest.

        ``label`` names the file in messages. ``digest`` is None if it is not known in advance. An
        ``Authorization`` header is not sent to other hosts (RFC 9110 section 15.4). Raises
        `CorruptError` if the file has another digest, `TooLargeError` if the server sends more
        than ``limit`` bytes.
        """
        local = _scheme(url) == "file"
        if digest and (blob := self.cache.find(digest)):
            self.reporter.detail(f"{label}: {human_size(blob.size)} from the cache")
            return blob
        if self.offline and not local:
            raise _offline(url, label, digest)

        def waiting() -> None:
            self.reporter.note(f"{label}: waiting for another build that downloads it")

        with self.cache.partial(digest, waiting) as partial:
            if digest and (blob := self.cache.find(digest)):
                return blob
            # They are equal if an earlier build was killed after the last byte.
            if partial.digest != digest:
                with self.reporter.transfer(label) as transfer:
                    if local:
                        _copy(url, partial, transfer)
                    else:
                        request = _Request(url, headers or {}, limit)
                        self._download(request, digest, partial, transfer)
            if digest and partial.digest != digest:
                actual = partial.digest
                partial.restart()
                raise CorruptError(
                    f"{label}: {printable_url(url)} has sha256 {actual.hex}, expected {digest.hex}",
                    "Either that file has changed or the checksum is wrong;"
                    " compare it with the checksum that the publisher gives.",
                )
            size = human_size(partial.size)
            self.reporter.detail(f"{label}: {size} from {printable_url(url)}")
            return self.cache.add(partial)

    def text(
        self, url: str, headers: Mapping[str, str] | None = None, limit: int = MAX_RESPONSE_SIZE
    ) -> str:
        """Return a response of at most ``limit`` bytes, decoded as UTF-8. It is not cached.

        Raises `NetworkError` if it is not UTF-8, `TooLargeError` if it is longer.
        """
        try:
            return self._read(url, headers or {}, limit).decode()
        except UnicodeDecodeError as error:
            raise _unexpected(url, "text") from error

    def json(
        self, url: str, headers: Headers | None = None, limit: int = MAX_RESPONSE_SIZE
    ) -> object:
        """Return a response of at most ``limit`` bytes, parsed as JSON. It is not cached.

        Raises `NetworkError` if it is not JSON, `TooLargeError` if it is longer.
        """
        try:
            return json.loads(self._read(url, headers or {}, limit))
        except (ValueError, RecursionError) as error:
            raise _unexpected(url, "JSON") from error

    def _read(self, url: str, headers: Headers, limit: int) -> bytes:
        if _scheme(url) == "file":
            return _join(_local(url, limit))
        if self.offline:
            raise NetworkError(
                f"{printable_url(url)} cannot be looked up offline",
                "Pin the file by its sha256 in fledge.toml, or run without --offline.",
            )

        def attempt() -> bytes:
            with self._transport.open(url, headers, {}, {HTTPStatus.OK}) as (response, where):
                return _join(read_body(response, where, 0, response.raw.length_remaining, limit))

        return self._retry(attempt, lambda: 0)

    def _download(
        self, request: _Request, digest: Digest | None, partial: Partial, transfer: Transfer
    ) -> None:
        """Complete the partial blob. Continue after its data where that is safe."""
        validator = ""
        resumed = False

        def attempt() -> None:
            nonlocal validator, resumed
            range_headers = {}
            accepted = {HTTPStatus.OK}
            if partial.size and (digest or validator):
                range_headers["Range"] = f"bytes={partial.size}-"
                accepted |= {HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE}
                if not digest:
                    range_headers["If-Range"] = validator
            opened = self._transport.open(request.url, request.headers, range_headers, accepted)
            with opened as (response, where):
                total: int | None
                if response.status_code == HTTPStatus.OK:
                    partial.restart()
                    validator = _validator(response.headers)
                    total = response.raw.length_remaining
                else:
                    # It may be a 416, or a part that was not requested.
                    part = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
                    if not part or int(part[1]) != partial.size:
                        partial.restart()
                        failure = NetworkError(f"{where}: cannot be resumed", TRY_LATER)
                        raise TransientError(failure, wait=0)
                    resumed = True
                    total = None if part[2] == "*" else int(part[2])
                transfer.restart(partial.size, total)
                try:
                    for piece in read_body(response, where, partial.size, total, request.limit):
                        partial.write(piece)
                        transfer.advance(len(piece))
                except TooLargeError:
                    partial.restart()  # the next try would fail too
                    raise

        self._retry(attempt, lambda: partial.size)
        if resumed and digest not in (None, partial.digest):
            where = printable_url(request.url)
            self.reporter.note(f"{where}: wrong checksum; downloading it again from the start")
            partial.restart()
            self._retry(attempt, lambda: partial.size)

    def _retry(self, attempt: Callable[[], T], size: Callable[[], int]) -> T:
        """Call ``attempt`` until it succeeds, fails for good, or makes no progress in `MAX_TRIES`.

        ``size`` returns the bytes received so far. Only bytes beyond the largest size so far
        count as progress, so the number of tries is bounded by the size of the file.
        """
        most = size()
        failures = 0
        told = ""
        while True:
            try:
                return attempt()
            except TransientError as transient:
                failures += 1
                if size() >= most + MIN_PROGRESS:
                    most = size()
                    failures = 1
                if failures == MAX_TRIES:
                    raise transient.error from transient
                backoff = self.backoff * 2 ** (failures - 1)
                pause = min(backoff if transient.wait is None else transient.wait, MAX_PAUSE)
                message = transient.error.message
                problem = "the same again" if message == told else message
                told = message
                self.reporter.note(f"{problem}; trying again in {pause:g} s")
                time.sleep(pause)


def _validator(headers: Mapping[str, str]) -> str:
    """Return the If-Range value with which this response can be resumed; empty if it cannot.

    It is a strong entity tag or, if the response has no entity tag, a modification time that is
    at least a second before the response (RFC 9110 sections 13.1.5 and 8.8.2.2).
    """
    if tag := headers.get("ETag"):
        return tag if tag.startswith('"') else ""
    modified = headers.get("Last-Modified", "")
    changed, sent = http_date(modified), http_date(headers.get("Date", ""))
    return modified if changed and sent and sent - changed >= timedelta(seconds=1) else ""


def _join(pieces: Iterable[bytes]) -> bytes:
    # b"".join would keep every piece in memory, and a hostile server may send single bytes.
    joined = bytearray()
    for piece in pieces:
        joined += piece
    return bytes(joined)


def _copy(url: str, partial: Partial, transfer: Transfer) -> None:
    partial.restart()
    transfer.restart(0, None)
    for piece in _local(url, MAX_DOWNLOAD_SIZE):
        partial.write(piece)
        transfer.advance(len(piece))


def _local(url: str, limit: int) -> Iterator[bytes]:
    """Yield the bytes of a file on this machine, named by a file URL (RFC 8089)."""
    where = printable_url(url)
    parts = urlsplit(url)
    path = Path(os.fsdecode(unquote_to_bytes(parts.path)))
    if parts.netloc not in ("", "localhost") or not path.is_absolute():
        raise ConfigError(f"{where} is not on this machine", "Write file:///ABSOLUTE/PATH.")
    try:
        # Checked before opening, because opening a fifo would wait for a writer.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{where} is not a regular file", "Name a file.")
        left = limit
        with path.open("rb", buffering=0) as file:
            while piece := file.read(CHUNK_SIZE):
                left -= len(piece)
                if left < 0:
                    raise ConfigError(f"{where} has more than {limit} bytes", "Name a smaller one.")
                yield piece
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise ConfigError(f"{where} cannot be read: {reason}", "Check the path.") from error


def _scheme(url: str) -> str:
    """Return ``http``, ``https`` or ``file``. Raises `ConfigError` for any other URL."""
    with suppress(ValueError):
        parts = urlsplit(url)
        web = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        if web or parts.scheme == "file":
            return parts.scheme
    # In an invalid URL a password may contain any character: hide everything up to the last @.
    raise ConfigError(
        f"{printable_url(re.sub('//.*@', '//', url))} is not a URL that can be downloaded",
        "Write a URL that begins with https://, http:// or file:///.",
    )


def _offline(url: str, label: str, digest: Digest | None) -> NetworkError:
    if not digest:
        return NetworkError(
            f"{label}: {printable_url(url)} cannot be looked up offline without a checksum",
            "Add its sha256 to fledge.toml, or run without --offline.",
        )
    return NetworkError(
        f"{label}: {printable_url(url)} (sha256 {digest.hex}) is not in the cache",
        "Run once without --offline.",
    )


def _unexpected(url: str, kind: str) -> NetworkError:
    return NetworkError(
        f"{printable_url(url)}: the answer is not {kind}",
        "Check the URL, and whether a proxy or a login page answers in place of the server.",
    )
