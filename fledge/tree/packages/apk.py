"""Packages of Alpine Linux: the database of apk (wiki.alpinelinux.org, Apk spec).

A paragraph a package: ``P:`` name, ``V:`` version, ``A:`` architecture, ``L:`` licence, ``o:``
origin. Files and checksums follow.
"""

from __future__ import annotations

from collections.abc import Iterator

from fledge.tree.content import Content
from fledge.tree.packages.package import Ecosystem, Meter, Package, optional_text, paragraphs, text

DATABASES = frozenset((b"lib/apk/db/installed", b"usr/lib/apk/db/installed"))

MAX_DATABASE = 64 << 20
"""Maximum bytes of a database."""


def _matches(path: bytes, mode: int) -> bool:
    return path in DATABASES


def _read(path: bytes, content: Content, meter: Meter) -> Iterator[Package]:
    for fields in paragraphs(meter.read_all(content, MAX_DATABASE)):
        name = text(fields.get(b"P"), "name (P:)")
        origin = optional_text(fields.get(b"o"))
        yield Package(
            kind="apk",
            name=name,
            version=text(fields.get(b"V"), "version (V:)"),
            path=path,
            architecture=optional_text(fields.get(b"A")) or None,
            licence=optional_text(fields.get(b"L")),
            source=origin if origin != name else "",
        )


APK = Ecosystem("apk", _matches, _read)
