"""``fledge.lock``: what the names and URLs of a ``fledge.toml`` stood for when it was written.

It lies beside the fledge.toml and is made for review: TOML, sorted, a digest a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
import tomli_w

from fledge.errors import ConfigError, CorruptError, FledgeError
from fledge.host.files import replacing
from fledge.oci.manifest import Platform, parse_platform
from fledge.oci.reference import relative
from fledge.project import toml
from fledge.project.config import Agent, Config, HttpAgent, ReleaseAgent
from fledge.project.toml import InvalidConfig, Table
from fledge.report import Reporter
from fledge.tree.names import printable

VERSION = "1"
HEADER = """\
# What the names and URLs in {} stand for, written by `fledge lock`.
# Keep it beside that file, in version control.

"""
REFRESH = "Run `fledge lock`, for another platform with --platform; review what it changes."
ARCHITECTURE = re.compile(r"[a-z0-9]+")

T = TypeVar("T")


class ImagePin(msgspec.Struct, frozen=True):
    """What an image is on one platform, to the byte. Digests are hex."""

    manifest: str | None
    """How to ask a registry for it; None if it did not come from where there are manifests."""
    config: str
    """The same whichever way an image comes; it decides."""
    diff_ids: tuple[str, ...]


class AgentPin(msgspec.Struct, frozen=True):
    version: str | None
    """The tag of the release, if it is one."""
    url: str
    sha256: str


class BusyboxPin(msgspec.Struct, frozen=True):
    url: str
    sha256: str


class Named(msgspec.Struct, Generic[T], frozen=True):
    """What one name stands for."""

    name: str
    """As `image_name` or `agent_name` spells it."""
    pins: Mapping[str, T]
    """By platform for an image, by architecture for an agent, both as OCI has them."""


class Lock(msgspec.Struct, frozen=True):
    image: Named[ImagePin] | None = None
    agent: Named[AgentPin] | None = None
    busybox: BusyboxPin | None = None


class Pins(msgspec.Struct, frozen=True):
    """A lock in use: what it pins for a config, and what happens where it does not.

    Every method raises `ConfigError` then if ``strict``, and else tells the reporter.
    """

    config: Config
    path: Path
    lock: Lock | None
    """None: there is no such file. Then nothing is pinned, and that is no news."""
    strict: bool
    reporter: Reporter

    def image(self, platform: Platform) -> ImagePin | None:
        found = self.lock.image if self.lock else None
        return self._find("image", found, image_name(self.config), str(platform))

    def agent(self, architecture: str) -> AgentPin | None:
        agent = self.config.agent
        name = agent_name(agent)
        if agent is None or name is None:
            return None
        pin = self._find("agent", self.lock.agent if self.lock else None, name, architecture)
        if pin and agent.checksum not in (None, pin.sha256):
            self._missing(
                f"pins the agent {name} with sha256 {pin.sha256}, but {self.config.path.name}"
                f" says {agent.checksum}"
            )
            return None
        return pin

    def check_busybox(self) -> None:
        """The config itself pins it; the two must agree."""
        source = self.config.source
        wanted = BusyboxPin(source.busybox_url, source.busybox_sha256)
        pin = self.lock.busybox if self.lock else None
        if pin is None:
            self._missing(f"does not pin the busybox {wanted.url}")
        elif pin != wanted:
            self._missing(
                f"pins the busybox {pin.url} with sha256 {pin.sha256}, but"
                f" {self.config.path.name} names {wanted.url} with sha256 {wanted.sha256}"
            )

    def _find(self, what: str, found: Named[T] | None, name: str, key: str) -> T | None:
        if found is None:
            self._missing(f"does not pin the {what} {name}")
        elif found.name != name:
            self._missing(f"pins the {what} {found.name}, but {self.config.path.name} names {name}")
        elif key not in found.pins:
            others = f"only for {', '.join(sorted(found.pins))}, " if found.pins else ""
            self._missing(f"pins the {what} {name} {others}not for {key}")
        else:
            return found.pins[key]
        return None

    def _missing(self, problem: str) -> None:
        if self.strict:
            raise ConfigError(f"{self.path} {problem}", REFRESH)
        if self.lock:
            self.reporter.note(f"{self.path} {problem}")


def path_beside(config: Path) -> Path:
    """Where the lock of a config is: ``fledge.lock`` for ``fledge.toml``."""
    if config.suffix == ".toml":
        return config.with_suffix(".lock")
    return config.with_name(config.name + ".lock")


def image_name(config: Config) -> str:
    """How the lock spells the image: in full, paths as the config has them."""
    image = config.source.image
    return str(relative(image, config.path.parent)) if image else ""


def agent_name(agent: Agent | None) -> str | None:
    """How the lock spells the agent; None for a file, which is no name for something else."""
    if isinstance(agent, ReleaseAgent):
        return agent.version
    return agent.url if isinstance(agent, HttpAgent) else None


def pins(config: Config, reporter: Reporter, *, strict: bool) -> Pins:
    """What pins the inputs of a config.

    Raises `ConfigError` if the lock cannot be used, or if it is missing and ``strict``.
    """
    path = path_beside(config.path)
    lock = load(path)
    if strict and lock is None:
        raise ConfigError(f"there is no {path}", "Run `fledge lock` to write it.")
    return Pins(config, path, lock, strict, reporter)


def load(path: Path) -> Lock | None:
    """Read a lock; None if there is none.

    Raises `InvalidConfig` with all that is wrong with it, `ConfigError` if it cannot be read.
    """
    if not path.exists():
        return None
    problems: list[str] = []
    try:
        lock = _lock(Table(toml.read(path, ""), "", path.parent, problems))
        if problems:
            raise InvalidConfig(path, problems)
    except InvalidConfig as error:
        error.hint = "Take it from version control, or delete it and run `fledge lock`."
        raise
    return lock


def write(lock: Lock, path: Path, config: Path) -> None:
    """Write the lock of a config, whole or not at all.

    Raises `CorruptError` if a server has put something into it that could not be read again,
    `FledgeError` if the folder or its disk does not take it.
    """
    document = _document(lock)
    problems: list[str] = []
    if _lock(Table(document, "", path.parent, problems)) != lock or problems:
        raise CorruptError(f"what was looked up makes no lock: {'; '.join(problems)}")
    text = HEADER.format(printable(config.name)) + tomli_w.dumps(document)
    try:
        with replacing(path) as file:
            file.write(text.encode())
    except FledgeError as error:
        error.hint = f"Make {path.parent} a folder that you can write to and that has room."
        raise


def differences(old: Lock, new: Lock) -> list[str]:
    """What one of the two says and the other does not, a line for each value."""
    before = dict(_values(_document(old), ""))
    after = dict(_values(_document(new), ""))
    return [
        f"{key}: {after.get(key, 'nothing')}, was {before.get(key, 'nothing')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _lock(top: Table) -> Lock:
    """The typed lock; where something is wrong a stand-in, beside the problem it made."""
    if top.text("version", None, f'"{VERSION}"') not in ("", VERSION):
        top.wrong("version", f'this fledge reads version = "{VERSION}"')
    lock = Lock(
        _image(top.table("image")) if top.has("image") else None,
        _agent(top.table("agent")) if top.has("agent") else None,
        _busybox(top.table("busybox")) if top.has("busybox") else None,
    )
    top.reject_unknown()
    return lock


def _image(table: Table) -> Named[ImagePin]:
    name = table.text("name", None, '"docker.io/library/nginx:alpine"')
    pins = {}
    platforms = table.table("platforms")
    for key in platforms.data:
        if not _is_platform(key):
            platforms.wrong(key, 'the key must be a platform, such as "linux/amd64"')
            continue
        each = platforms.table(key)
        manifest = each.digest("manifest") if each.has("manifest") else None
        pins[key] = ImagePin(manifest, each.digest("config"), tuple(each.digests("diff_ids")))
        each.reject_unknown()
    table.reject_unknown()
    return Named(name, pins)


def _agent(table: Table) -> Named[AgentPin]:
    name = table.text("name", None, '"latest"')
    pins = {}
    architectures = table.table("architectures")
    for key in architectures.data:
        if not ARCHITECTURE.fullmatch(key):
            architectures.wrong(key, "the key must be an architecture, such as amd64")
            continue
        each = architectures.table(key)
        version = each.text("version", "", '"v1.2.3"') or None
        pins[key] = AgentPin(version, each.url("url", None), each.sha256("sha256", None) or "")
        each.reject_unknown()
    table.reject_unknown()
    return Named(name, pins)


def _busybox(table: Table) -> BusyboxPin:
    pin = BusyboxPin(table.url("url", None), table.sha256("sha256", None) or "")
    table.reject_unknown()
    return pin


def _is_platform(key: str) -> bool:
    try:
        return str(parse_platform(key)) == key
    except ConfigError:
        return False


def _document(lock: Lock) -> dict[str, object]:
    """The lock as TOML has it, in the order in which it is written."""
    document: dict[str, object] = {"version": VERSION}
    if lock.image:
        platforms = {key: _image_table(pin) for key, pin in sorted(lock.image.pins.items())}
        document["image"] = {"name": lock.image.name, "platforms": platforms}
    if lock.agent:
        architectures = {
            key: {
                **({"version": pin.version} if pin.version else {}),
                "url": pin.url,
                "sha256": pin.sha256,
            }
            for key, pin in sorted(lock.agent.pins.items())
        }
        document["agent"] = {"name": lock.agent.name, "architectures": architectures}
    if lock.busybox:
        document["busybox"] = {"url": lock.busybox.url, "sha256": lock.busybox.sha256}
    return document


def _image_table(pin: ImagePin) -> dict[str, object]:
    return {
        **({"manifest": f"sha256:{pin.manifest}"} if pin.manifest else {}),
        "config": f"sha256:{pin.config}",
        "diff_ids": [f"sha256:{each}" for each in pin.diff_ids],
    }


def _values(document: Mapping[str, object], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _values(value, f"{prefix}{key} ")
        elif isinstance(value, list):
            yield from ((f"{prefix}{key} {number}", each) for number, each in enumerate(value))
        else:
            yield prefix + key, str(value)
