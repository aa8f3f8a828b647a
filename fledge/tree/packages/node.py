"""Node.js packages: the ``package.json`` of each folder in a ``node_modules`` (docs.npmjs.com,
"package.json").
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from fledge.errors import MalformedError
from fledge.tree.content import Content
from fledge.tree.packages.package import Ecosystem, Meter, Package, optional_text, text

_PATH = re.compile(rb"(?:^|/)node_modules/(?:@[^/@.][^/]*/)?[^/@.][^/]*/package\.json\Z", re.DOTALL)
"""Names of packages do not begin with a dot; ``.bin`` and ``.cache`` are other folders."""

MAX_DOCUMENT = 4 << 20
"""Maximum bytes of a ``package.json``."""


MAX_LICENCE = 1 << 12
"""Maximum bytes of its licence."""


class _Document(msgspec.Struct):
    """The keys of a ``package.json`` that matter here. What has no version was never installed."""

    name: str = ""
    version: str = ""
    license: msgspec.Raw = msgspec.Raw(b"null")


_DECODER = msgspec.json.Decoder(_Document)


def _matches(path: bytes, mode: int) -> bool:
    return path.endswith(b"/package.json") and bool(_PATH.search(path))


def _read(path: bytes, content: Content, meter: Meter) -> Iterator[Package]:
    try:
        document = _DECODER.decode(meter.read_all(content, MAX_DOCUMENT))
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise MalformedError(f"it is no package: {error}") from error
    if not document.name or not document.version:
        return
    yield Package(
        kind="npm",
        name=text(document.name, "name"),
        version=text(document.version, "version"),
        path=path,
        licence=_licence(document.license),
    )


def _licence(value: msgspec.Raw) -> str:
    """Return the key ``license``: a text, or an object with a ``type`` as before 2014."""
    if len(value) > MAX_LICENCE:
        return ""
    licence = msgspec.json.decode(value)
    if isinstance(licence, dict):
        licence = licence.get("type")
    return optional_text(licence) if isinstance(licence, str) else ""


NODE = Ecosystem("npm", _matches, _read)
