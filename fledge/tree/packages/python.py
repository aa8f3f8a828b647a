"""Python packages: ``METADATA`` of wheels and ``PKG-INFO`` of eggs (packaging.python.org, "Core
metadata specifications").

They are fields as in a mail, with a description after the first empty line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fledge.tree.content import Content, content_size
from fledge.tree.packages.package import Ecosystem, Meter, Package, optional_text, text

_PATH = re.compile(
    rb"(?:^|/)[^/]+(?:\.dist-info/METADATA|\.egg-info/PKG-INFO|\.egg-info)\Z", re.DOTALL
)

MAX_FIELDS = 1 << 16
"""Maximum bytes that the fields before the description may have."""


def _matches(path: bytes, mode: int) -> bool:
    return path.endswith((b"/METADATA", b"/PKG-INFO", b".egg-info")) and bool(_PATH.search(path))


def _read(path: bytes, content: Content, meter: Meter) -> Iterator[Package]:
    start = meter.read(content, 0, min(content_size(content), MAX_FIELDS))
    fields: dict[bytes, bytes] = {}
    for line in start.splitlines():
        if not line.strip():
            break
        name, colon, value = line.partition(b":")
        if colon and line[:1] not in b" \t":
            fields.setdefault(name.lower(), value.strip())
    licence = fields.get(b"license-expression") or fields.get(b"license")
    yield Package(
        kind="pypi",
        name=text(fields.get(b"name"), "Name"),
        version=text(fields.get(b"version"), "Version"),
        path=path,
        licence=optional_text(licence) if licence != b"UNKNOWN" else "",
    )


PYTHON = Ecosystem("pypi", _matches, _read)
