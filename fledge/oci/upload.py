"""Uploads a blob to a registry, and goes on where a broken connection has left it.

OCI distribution-spec, "Pushing blobs". A blob is sent in one piece if it is small; after a failure
the registry says how much it has got, and the rest follows in smaller pieces.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

import msgspec

from fledge.errors import NetworkError
from fledge.net.exchange import Headers, HttpStatusError, Outgoing, TransientError, printable_url
from fledge.oci.login import NO_LOGIN
from fledge.report import Transfer
from fledge.tree.content import Span, content_size, read_range
from fledge.tree.digest import Digest

if TYPE_CHECKING:
    from fledge.net.fetch import Answer, Fetcher

MAX_PIECE = 8 << 20
"""Maximum bytes of a request. A piece is held in memory."""
MIN_PIECE = 64 << 10
"""Minimum bytes to which failures shorten a piece, unless the registry wants longer ones."""
MAX_MIN_PIECE = 64 << 20
"""Maximum bytes that a registry may want a piece to have."""

RANGE = re.compile("(?:bytes=)?0-([0-9]{1,18})")
"""What a registry has of an upload. Some leave the range out while it is empty."""

LOST = {HTTPStatus.NOT_FOUND, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE}
"""The statuses with which a registry says that it does not know how an upload goes on."""


class Upload:
    """One blob on its way to a registry."""

    def __init__(
        self, url: str, data: bytes | Span, digest: Digest, headers: Headers, fetcher: Fetcher
    ) -> None:
        """``url`` is where uploads begin; ``headers`` has the login."""
        self._begin = url
        self._data = data
        self._size = content_size(data)
        self._digest = digest
        self._headers = headers
        self._fetcher = fetcher
        self._location = ""
        """Where to send the next piece; empty: the upload has not begun."""
        self._sent = 0
        """Bytes that the registry has confirmed."""
        self._piece = MAX_PIECE
        self._min_piece = MIN_PIECE
        self._in_doubt = False
        """Whether the registry must be asked first how much it has got."""
        self._has_failed = False
        """Whether a request has failed. Then each has a connection of its own: where connections
        break after a time, a used one breaks sooner, and some registries drop the whole upload."""

    def run(self, transfer: Transfer) -> None:
        """Upload the blob. Raises `NetworkError` if it makes no progress in several tries."""
        self._transfer = transfer
        transfer.restart(0, self._size)
        self._fetcher.retry(self._attempt, lambda: self._sent)

    def _attempt(self) -> None:
        try:
            if self._in_doubt:
                self._find_position()
            if not self._location:
                begun = self._send(self._begin, Outgoing("POST", body=b""), {HTTPStatus.ACCEPTED})
                self._move(begun, 0)
                self._heed(begun.headers.get("OCI-Chunk-Min-Length", ""))
            while self._size - self._sent > self._piece:
                self._send_piece()
            self._finish()
        except TransientError:
            self._in_doubt = self._has_failed = True
            # Fast enough that the shortest piece is tried before the tries are used up.
            self._piece = max(self._min_piece, min(self._piece, self._size - self._sent) // 4)
            raise

    def _heed(self, least: str) -> None:
        """Send no shorter pieces than the registry wants, but for the last one."""
        if re.fullmatch("[0-9]{1,9}", least):
            self._min_piece = max(MIN_PIECE, min(int(least), MAX_MIN_PIECE))
            self._piece = max(self._piece, self._min_piece)

    def _send_piece(self) -> None:
        end = self._sent + self._piece
        body = read_range(self._data, self._sent, self._piece)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"{self._sent}-{end - 1}",
        }
        answer = self._send(
            self._location, Outgoing("PATCH", body=body), {HTTPStatus.ACCEPTED}, headers
        )
        self._move(answer, end)

    def _finish(self) -> None:
        """Send the last piece, which is the whole blob if it is small."""
        body = read_range(self._data, self._sent, self._size - self._sent)
        parts = urlsplit(self._location)
        query = [*parse_qsl(parts.query, keep_blank_values=True), ("digest", str(self._digest))]
        url = parts._replace(query=urlencode(query)).geturl()
        headers = {"Content-Type": "application/octet-stream"}
        if self._sent and body:
            headers["Content-Range"] = f"{self._sent}-{self._size - 1}"
        created = {HTTPStatus.CREATED, HTTPStatus.NO_CONTENT, HTTPStatus.ACCEPTED}
        self._send(url, Outgoing("PUT", body=body), created, headers)
        self._transfer.advance(self._size - self._sent)

    def _find_position(self) -> None:
        """Ask how much of the blob has arrived. Begin again if the registry does not know."""
        self._in_doubt = False
        if not self._location:
            return
        accepted = {HTTPStatus.NO_CONTENT, HTTPStatus.OK, HTTPStatus.ACCEPTED}
        try:
            answer = self._send(self._location, Outgoing(), accepted)
        except HttpStatusError:
            self._restart()
            return
        found = RANGE.fullmatch(answer.headers.get("Range", ""))
        # "0-0" stands for nothing as well as for one byte: then begin again.
        last = int(found[1]) if found else 0
        if not 0 < last < self._size:
            self._restart()
        else:
            self._move(answer, last + 1)

    def _restart(self) -> None:
        self._location = ""
        self._sent = 0
        self._transfer.restart(0, self._size)

    def _move(self, answer: Answer, sent: int) -> None:
        """Go on at the place that the registry names in its answer."""
        location = answer.headers.get("Location", self._location)
        if not location:
            raise NetworkError(
                f"{answer.where}: the registry does not say where to upload to",
                "Check whether the server is a registry.",
            )
        self._location = urljoin(answer.url, location)
        here, there = urlsplit(self._begin), urlsplit(self._location)
        if there.scheme not in ("https", here.scheme):
            raise NetworkError(
                f"{answer.where}: the registry says to upload to {printable_url(self._location)},"
                " which is not safe",
                "Whoever runs that registry must make it name https URLs.",
            )
        if sent >= self._sent:
            self._transfer.advance(sent - self._sent)
        else:
            self._transfer.restart(sent, self._size)
        self._sent = sent

    def _send(
        self,
        url: str,
        outgoing: Outgoing,
        accepted: set[HTTPStatus],
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Send one request. A piece that the registry cannot place begins the upload again."""
        # The user's login is not for other servers that the registry names.
        is_here = urlsplit(url)[:2] == urlsplit(self._begin)[:2]
        login = self._headers if is_here else NO_LOGIN
        try:
            alone = msgspec.structs.replace(outgoing, is_alone=self._has_failed)
            return self._fetcher.send_once(url, login, alone, accepted, headers or {})
        except HttpStatusError as error:
            if error.status in LOST and self._location and outgoing.method != "GET":
                self._restart()
                raise TransientError(error) from error
            raise
