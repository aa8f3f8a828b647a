"""The network between a guest and this host: QEMU's user mode network.

See "Network emulation" in QEMU's documentation.
"""

from __future__ import annotations

import re

import msgspec

from fledge.errors import ConfigError

ADDRESS, GATEWAY, NETMASK = "10.0.2.15", "10.0.2.2", "255.255.255.0"
"""The addresses of guest and host, and their netmask."""

LOOPBACK = "127.0.0.1"
"""The address of this host at which the ports of a guest are published."""

MAX_PORT = 65535


class Forward(msgspec.Struct, frozen=True):
    """A TCP port of this host, at `LOOPBACK`, that leads to one of the guest."""

    host: int
    guest: int


def parse_forward(text: str) -> Forward:
    """Parse ``HOST:GUEST``. Raises `ConfigError`."""
    match = re.fullmatch(r"([0-9]{1,5}):([0-9]{1,5})", text)
    if match and all(0 < int(each) <= MAX_PORT for each in match.groups()):
        return Forward(int(match[1]), int(match[2]))
    raise ConfigError(
        f"{text!r} does not say which port to publish",
        "Write HOST:GUEST, such as 8080:80 for port 80 of the guest at http://127.0.0.1:8080/.",
    )
