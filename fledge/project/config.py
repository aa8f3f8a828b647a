"""``fledge.toml``: what it may say, and a reading of it that reports every mistake at once."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Literal, cast

import msgspec

from fledge.oci.reference import Reference
from fledge.project import toml
from fledge.project.toml import InvalidConfig, Table
from fledge.sources import mappings
from fledge.sources.init import MOUNT_POINTS
from fledge.sources.mappings import Mapping, Placement
from fledge.tree.names import printable

Strategy = Literal["initramfs", "oci_rootfs"]
STRATEGIES: tuple[Strategy, ...] = ("initramfs", "oci_rootfs")

FilesystemType = Literal["ext4", "xfs", "btrfs"]
Builder = Literal["native", "mkfs"]
BUILDERS: tuple[Builder, ...] = ("native", "mkfs")
FILESYSTEM_TYPES: tuple[FilesystemType, ...] = ("ext4", "xfs", "btrfs")

DEFAULT_BUSYBOX_URL = "https://busybox.net/downloads/binaries/1.35.0-x86_64-linux-musl/busybox"
DEFAULT_BUSYBOX_SHA256 = "6e123e7f3202a8c1e9b1f94d8941580a25135382b99e8d3e34fb858bba311348"

MAX_BUFFER_MB = 1 << 24
"""MiB; the 16 TiB that ext4 with blocks of 4 KiB and 32-bit block numbers can have."""


class ReleaseAgent(msgspec.Struct, frozen=True):
    """A release of kestrel on GitHub: ``version`` is its tag, or "latest"."""

    version: str = "latest"
    checksum: str | None = None
    """The sha256 (hex) that the agent must have; None leaves it open."""


class LocalAgent(msgspec.Struct, frozen=True):
    """A file on this machine."""

    path: Path
    checksum: str | None = None


class HttpAgent(msgspec.Struct, frozen=True):
    """Any URL: http, https or file."""

    url: str
    checksum: str | None = None


Agent = ReleaseAgent | LocalAgent | HttpAgent


class Init(msgspec.Struct, frozen=True):
    """The user's own init, instead of the built-in one and the agent."""

    path: Path | None
    """The file that becomes ``/init``; None: a mapping provides it."""


class Source(msgspec.Struct, frozen=True):
    image: Reference | None = None
    """With strategy "initramfs" the tree that busybox is laid over."""
    busybox_url: str = DEFAULT_BUSYBOX_URL
    busybox_sha256: str = DEFAULT_BUSYBOX_SHA256


class Filesystem(msgspec.Struct, frozen=True):
    type: FilesystemType = "ext4"
    size_buffer_mb: int = 0
    """Free space after everything is in, in MiB; 0 lets fledge choose."""
    builder: Builder = "native"
    """Of ext4: fledge itself, or e2fsprogs (``mkfs``)."""
    preallocate: bool = False
    """Allocate the whole image instead of leaving free space as holes."""


class Config(msgspec.Struct, frozen=True):
    """A ``fledge.toml`` without mistakes, its relative paths resolved against its folder."""

    path: Path
    strategy: Strategy
    agent: Agent | None
    """None with an init of the user's own, who then starts what there is to start."""
    init: Init | None
    """None: the built-in one."""
    source: Source
    filesystem: Filesystem
    placements: tuple[Placement, ...]
    """What ``[mappings]`` puts where, expanded to files."""
    data: dict[str, object] = msgspec.field(default_factory=dict)
    """All this as TOML has it."""


def load(path: Path) -> Config:
    """Read and validate a ``fledge.toml``, the files it names included.

    Raises `InvalidConfig` with all problems, or `ConfigError` if there is no such file.
    """
    return parse(
        toml.read(path, "Run fledge beside a fledge.toml, or name one with -c FILE."), path
    )


def parse(data: dict[str, object], path: Path) -> Config:
    """A ``fledge.toml`` that has been read, as if it were at that path. Raises as `load` does."""
    problems: list[str] = []
    config = _config(path, Table(data, "", path.parent, problems))
    if problems:
        raise InvalidConfig(path, problems)
    return config


def _config(path: Path, top: Table) -> Config:
    """The typed config; where something is wrong a stand-in, beside the problem it made."""
    if top.text("version", None, '"1"') not in ("", "1"):
        top.wrong("version", 'this fledge reads version = "1"')
    strategy = top.choice("strategy", STRATEGIES, None)
    agent, init, source = top.table("agent"), top.table("init"), top.table("source")
    filesystem, mapped = top.table("filesystem"), top.table("mappings")
    for table, owner in ((init, "initramfs"), (filesystem, "oci_rootfs")):
        if table.name in top.data and strategy not in (owner, ""):
            table.complain(f'only for strategy = "{owner}"; remove the table')
    own_init = _init(init)
    if own_init and "agent" in top.data and strategy != "oci_rootfs":
        agent.complain("an init of your own starts no agent; remove [agent] or what is in [init]")
    config = Config(
        path=path,
        strategy=cast(Strategy, strategy),
        agent=_agent(agent) if own_init is None or agent.data else None,
        init=own_init,
        source=_source(source, strategy),
        filesystem=Filesystem(
            type=cast(FilesystemType, filesystem.choice("type", FILESYSTEM_TYPES, "ext4")),
            size_buffer_mb=filesystem.natural("size_buffer_mb", 0, MAX_BUFFER_MB),
            builder=cast(Builder, filesystem.choice("builder", BUILDERS, "native")),
            preallocate=filesystem.boolean("preallocate", False),
        ),
        placements=_placements(mapped),
        data=top.data,
    )
    if filesystem.has("builder") and config.filesystem.type != "ext4":
        filesystem.wrong("builder", 'needs type = "ext4"; write that, or remove builder')
    if strategy == "initramfs":
        _check_init(config, init)
        _check_hidden(config, mapped)
    for table in (top, agent, init, source, filesystem):
        table.reject_unknown()
    return config


def _agent(table: Table) -> Agent:
    strategy = table.choice("source_strategy", ("release", "local", "http"), "release")
    for key, owner in (("version", "release"), ("path", "local"), ("url", "http")):
        if table.has(key) and strategy not in (owner, ""):
            table.wrong(key, f'needs source_strategy = "{owner}"; write that, or remove {key}')
    checksum = table.sha256("checksum")
    if strategy == "local":
        return LocalAgent(table.file("path"), checksum)
    if strategy == "http":
        return HttpAgent(table.url("url", None), checksum)
    return ReleaseAgent(table.text("version", "latest", '"v1.2.3" or "latest"'), checksum)


def _init(table: Table) -> Init | None:
    path = table.file("path") if table.has("path") else None
    none = table.boolean("none", False)
    if path and none:
        table.wrong("none", "contradicts path; keep one of the two")
    return Init(path) if path or none else None


def _source(table: Table, strategy: str) -> Source:
    image = None
    if table.has("image") or strategy == "oci_rootfs":
        image = table.reference("image")
    for key, partner in (
        ("busybox_url", "busybox_sha256"),
        ("busybox_sha256", "busybox_url"),
    ):
        if table.has(key) and strategy == "oci_rootfs":
            table.wrong(key, 'only for strategy = "initramfs"; remove it')
        elif table.has(key) and not table.has(partner):
            table.missing(partner, f"{key} is given and needs it, so that both are of one file")
    return Source(
        image=image,
        busybox_url=table.url("busybox_url", DEFAULT_BUSYBOX_URL),
        busybox_sha256=table.sha256("busybox_sha256") or DEFAULT_BUSYBOX_SHA256,
    )


def _placements(table: Table) -> tuple[Placement, ...]:
    keys: dict[Mapping, str] = {}
    for key, destination in table.data.items():
        if not isinstance(destination, str):
            example = '"app.conf" = "/etc/app.conf"'
            table.wrong(key, f"must be text; write source and destination in quotes: {example}")
        elif problem := mappings.destination_problem(destination):
            table.wrong(key, problem)
        elif not key or "\0" in key:
            table.wrong(key, "the source must be the path of a file or folder")
        else:
            keys[Mapping(table.folder / key, destination.encode())] = key
    placements, problems = mappings.scan(keys)
    for mapping, problem in problems:
        table.wrong(keys[mapping], problem)
    return tuple(placements)


def _check_init(config: Config, table: Table) -> None:
    """What can be said of ``/init`` before anything is downloaded."""
    mapped = next((p for p in config.placements if p.path == b"/init"), None)
    if config.init and config.init.path and mapped:
        table.wrong("path", f"{mapped.source} is mapped to /init as well; keep one of the two")
    elif config.init and not config.init.path and not mapped and not config.source.image:
        table.wrong("none", "no mapping provides /init; map an executable to it")
    elif mapped and stat.S_ISDIR(mapped.file_type):
        table.complain(f"{mapped.source} becomes /init and is a folder; map an executable there")
    elif mapped and not mapped.mode & 0o111:
        table.complain(f"{mapped.source} becomes /init and is not executable; chmod +x it")


def _check_hidden(config: Config, table: Table) -> None:
    """No file may go where the built-in init mounts something over it."""
    own_init = config.init is not None or any(p.path == b"/init" for p in config.placements)
    for placement in () if own_init else config.placements:
        mount_point = next((p for p in MOUNT_POINTS if placement.path.startswith(p + b"/")), None)
        if mount_point and placement.file_type != stat.S_IFDIR:
            table.complain(
                f"{placement.source} goes to {printable(placement.path)}, where nothing will see"
                f" it: init mounts another filesystem on {printable(mount_point)}"
            )
