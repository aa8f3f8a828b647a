"""What the config of an image says about running it (OCI image-spec, config.md, ``config``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from fledge.errors import MalformedError


class Runtime(msgspec.Struct, frozen=True):
    """How to run a container of an image. A member that is missing or null is empty."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    """``Cmd``: the arguments of the entrypoint, or the program if there is no entrypoint."""
    environment: Mapping[str, str] = {}
    """``Env``, in the order of the config. Of a name that is there twice, the last value."""
    folder: str = ""
    """``WorkingDir``."""
    user: str = ""
    ports: tuple[str, ...] = ()
    """``ExposedPorts``, such as ``80/tcp``, sorted by number."""
    has_healthcheck: bool = False
    """The image has a ``Healthcheck``, which is Docker's own and not in OCI."""
    labels: Mapping[str, str] = {}

    @property
    def arguments(self) -> tuple[str, ...]:
        """The program and its arguments: entrypoint and command."""
        return self.entrypoint + self.command


def parse(config: bytes) -> Runtime:
    """Parse the config of an image. Raises `MalformedError`, which names the member."""
    try:
        document = msgspec.json.decode(config)
    except (ValueError, RecursionError) as error:
        raise MalformedError("it is not JSON") from error
    members = document.get("config") if isinstance(document, dict) else None
    if members is None:
        return Runtime()
    if not isinstance(members, dict):
        raise MalformedError("config is not an object")
    ports = members.get("ExposedPorts") or {}
    if not isinstance(ports, dict):
        raise MalformedError("ExposedPorts is not an object")
    return Runtime(
        entrypoint=_arguments(members, "Entrypoint"),
        command=_arguments(members, "Cmd"),
        environment=dict(_variable(text) for text in _texts(members, "Env")),
        folder=_text(members, "WorkingDir"),
        user=_text(members, "User"),
        ports=tuple(sorted(ports, key=_port_order)),
        has_healthcheck=_has_healthcheck(members.get("Healthcheck")),
        labels=_labels(members),
    )


def _arguments(members: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A command as a list. A single string, as old builders wrote it, is one for the shell."""
    if isinstance(members.get(key), str):
        return ("/bin/sh", "-c", _text(members, key))
    return _texts(members, key)


def _texts(members: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = members.get(key) or []
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise MalformedError(f"{key} is not a list of strings")
    return tuple(values)


def _text(members: Mapping[str, Any], key: str) -> str:
    value = members.get(key) or ""
    if not isinstance(value, str):
        raise MalformedError(f"{key} is not a string")
    return value


def _labels(members: Mapping[str, Any]) -> dict[str, str]:
    labels = members.get("Labels") or {}
    if not isinstance(labels, dict) or not all(isinstance(each, str) for each in labels.values()):
        raise MalformedError("Labels is not an object of strings")
    return labels


def _variable(text: str) -> tuple[str, str]:
    """Split ``NAME=VALUE``; the value may have ``=`` in it, and is empty if there is none."""
    name, _, value = text.partition("=")
    return name, value


def _port_order(port: str) -> tuple[int, str]:
    number = port.partition("/")[0]
    return int(number) if number.isdecimal() and len(number) < 6 else 0, port


def _has_healthcheck(check: object) -> bool:
    tests = check.get("Test") if isinstance(check, dict) else None
    return isinstance(tests, list) and bool(tests) and tests[0] != "NONE"
