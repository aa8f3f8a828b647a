"""Packages of Debian and its relatives: the database of dpkg (deb822(5), dpkg-query(1)).

``/var/lib/dpkg/status`` has a paragraph for each package. Images without dpkg, as those of
distroless, have a file for each in ``/var/lib/dpkg/status.d``, without the field ``Status``.
"""

from __future__ import annotations

from collections.abc import Iterator

from fledge.tree.content import Content
from fledge.tree.packages.package import Ecosystem, Meter, Package, optional_text, paragraphs, text

STATUS = b"var/lib/dpkg/status"
FOLDER = b"var/lib/dpkg/status.d/"

NOT_INSTALLED = (b"not-installed", b"config-files")
"""The last word of ``Status`` for a package of which no program is there."""

MAX_DATABASE = 64 << 20
"""Maximum bytes of a database."""


def _matches(path: bytes, mode: int) -> bool:
    return path == STATUS or (path.startswith(FOLDER) and not path.endswith(b".md5sums"))


def _read(path: bytes, content: Content, meter: Meter) -> Iterator[Package]:
    for fields in paragraphs(meter.read_all(content, MAX_DATABASE)):
        if fields.get(b"Status", b"").split(b" ")[-1] in NOT_INSTALLED:
            continue
        yield Package(
            kind="deb",
            name=text(fields.get(b"Package"), "Package"),
            version=text(fields.get(b"Version"), "Version"),
            path=path,
            architecture=optional_text(fields.get(b"Architecture")) or None,
            source=optional_text(fields.get(b"Source")),
        )


DPKG = Ecosystem("deb", _matches, _read)
