"""Parses the challenges of a WWW-Authenticate header (RFC 9110 sections 11.2 to 11.6.1).

The header is a list of challenges, and each challenge may have a list of parameters. One comma
separates both:

    Basic realm="a", Bearer realm="https://auth.example/token",service=s

Registries take liberties with that, which are accepted: a value without quotes may contain any
character but space, comma and quote.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

MAX_HEADER = 4 << 10
"""Maximum characters of a header that are parsed."""

TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105
SEPARATOR = re.compile(r"[\s,]*")
PARAMETER = re.compile(
    rf"(?P<name>{TOKEN})[ \t]*=[ \t]*"
    r'(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>(?:[^\s,"=][^\s,"]*)?))(?=[\s,]|$)',
    re.DOTALL,
)
SCHEME = re.compile(rf"(?P<scheme>{TOKEN})(?=[\s,]|$)")
REST = re.compile(r"[^\s,]*")


class Challenge(msgspec.Struct, frozen=True):
    """One way to log in that a server offers."""

    scheme: str
    """In lower case, such as ``bearer``."""
    parameters: Mapping[str, str]
    """The values by their names in lower case. Of a name given twice, the first value."""


def parse_challenges(header: str) -> list[Challenge]:
    """Parse a WWW-Authenticate header. Parts that are malformed are skipped."""
    header = header[:MAX_HEADER]
    challenges: list[tuple[str, dict[str, str]]] = []
    position = 0
    while (position := _end(SEPARATOR, header, position)) < len(header):
        if parameter := PARAMETER.match(header, position):
            if challenges:
                quoted = parameter["quoted"]
                value = parameter["bare"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                challenges[-1][1].setdefault(parameter["name"].lower(), value)
            position = parameter.end()
        elif scheme := SCHEME.match(header, position):
            challenges.append((scheme["scheme"].lower(), {}))
            position = scheme.end()
        else:
            position = max(_end(REST, header, position), position + 1)
    return [Challenge(scheme, parameters) for scheme, parameters in challenges]


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return match.end() if match else position
