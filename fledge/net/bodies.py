"""Reads the bodies of responses that are not as they should be: encoded though nobody asked for
it, web pages in place of files, and the words in which servers refuse. None of it is trusted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from fledge.errors import CorruptError, NetworkError
from fledge.tree.compression import GZIP_MAGIC, gunzip, members
from fledge.tree.names import printable

MAX_WORDS = 200
"""Maximum characters of a server's words in a message."""
MAX_PARSED = 4 << 10
"""Maximum bytes of a body that are looked at for words."""

GZIP_ENCODINGS = {"gzip", "x-gzip"}  # RFC 9110 section 8.4.1.3

WEB_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html|head)\b", re.IGNORECASE)
TITLE = re.compile(rb"<title[^>]{0,100}>([^<]{0,400})", re.IGNORECASE)


def is_encoded(headers: Mapping[str, str]) -> bool:
    """Return whether a response has been compressed by gzip for the way."""
    return headers.get("Content-Encoding", "").strip().lower() in GZIP_ENCODINGS


def encoded_limit(limit: int) -> int:
    """Return the maximum bytes of the encoded form of ``limit`` bytes, with what gzip adds."""
    return limit + (limit >> 8) + (64 << 10)


def decode(pieces: Iterable[bytes], where: str) -> Iterator[bytes]:
    """Decompress a body that `is_encoded`, unless it is not compressed in fact.

    Raises `NetworkError` if it is damaged. The caller limits the size.
    """
    rest = iter(pieces)
    start = b""
    while len(start) < len(GZIP_MAGIC) and (piece := next(rest, b"")):
        start += piece
    if not start.startswith(GZIP_MAGIC):
        yield start
        yield from rest
        return
    try:
        yield from members(chain([start], rest), gunzip)
    except CorruptError as error:
        raise NetworkError(
            f"{where}: the answer has Content-Encoding: gzip, but {error.message}",
            "Check whether a proxy changes answers.",
        ) from error


def is_web_page(start: bytes) -> bool:
    """Return whether a body that begins so is HTML."""
    return bool(WEB_PAGE.match(start[:MAX_PARSED]))


def describe(body: bytes) -> str:
    """Say what a body is that should have been something else. The text is safe to print."""
    if not body:
        return "nothing"
    if is_web_page(body):
        title = _title(body)
        return f'a web page with the title "{title}"' if title else "a web page"
    start = _shortened(body[:40].decode(errors="replace"))
    return f'{len(body)} bytes that begin with "{start}"'


def words(body: bytes) -> str:
    """Return what a server says in the body of a refusal, safe to print; empty if nothing.

    It may be the errors of a registry (OCI distribution-spec, "Error Codes"), of OAuth (RFC 6749
    section 5.2) or of GitHub, the title of a web page, or plain text.
    """
    body = body[:MAX_PARSED]
    if is_web_page(body):
        return _title(body)
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        text = body.decode(errors="replace").strip()
        return "" if text[:1] in ("", "<", "{", "[") else _shortened(text)
    if not isinstance(answer, dict):
        return ""
    errors = answer.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else answer
    if not isinstance(first, dict):
        return ""
    for key in ("message", "error_description", "details", "error", "code"):
        value = first.get(key)
        if isinstance(value, str) and value:
            return _shortened(value)
    return ""


def _title(body: bytes) -> str:
    found = TITLE.search(body[:MAX_PARSED])
    return _shortened(found[1].decode(errors="replace")) if found else ""


def _shortened(text: str) -> str:
    text = printable(" ".join(text.split()))
    return text if len(text) <= MAX_WORDS else f"{text[: MAX_WORDS - 3]}..."
