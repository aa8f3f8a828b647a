"""The pipeline: gather the sources, overlay them in a tree, write it, record what it came from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_IFLNK

from fledge import agent, busybox, init, mappings
from fledge.cache import Cache
from fledge.config import Config, LocalAgent
from fledge.content import content_size, whole_file
from fledge.cpio import gzip, newc
from fledge.errors import ConfigError, FledgeError
from fledge.fetch import Fetcher
from fledge.files import check_output, replacing
from fledge.report import Reporter, Transfer, human_size
from fledge.tree import File, Tree

DEFAULT_EPOCH = 1704067200
"""2024-01-01T00:00:00Z: the time of all that fledge adds, without SOURCE_DATE_EPOCH."""

DEFAULT_OUTPUT = Path("plugin.cpio.gz")


@dataclass(frozen=True)
class Input:
    """One thing that an artifact was made from."""

    role: str
    """``busybox``, ``agent``, ``init`` or ``mapping``."""
    uri: str
    """A URL, or a path as the config has it."""
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """What a build wrote."""

    path: Path
    size: int
    """Bytes in the file."""
    sha256: str
    entries: int
    """Names in the filesystem, the root included."""
    content_size: int
    """Bytes in all its files."""
    inputs: tuple[Input, ...]


def build(
    config: Config,
    output: Path | None = None,
    *,
    cache: Cache,
    reporter: Reporter,
    offline: bool = False,
) -> Artifact:
    """Build what ``config`` describes and put it, whole, at ``output``.

    The same config and inputs give the same bytes on every machine. Raises `FledgeError`;
    then an older artifact at ``output`` is as it was.
    """
    output = output or DEFAULT_OUTPUT
    if config.strategy != "initramfs" or config.source.image:
        raise FledgeError(
            f"{config.path}: this version of fledge cannot build from an image yet",
            'Use strategy = "initramfs" without [source] image.',
        )
    check_output(output)
    _keep_sources(config, output)
    fetcher = Fetcher(cache, reporter, offline)
    tree = Tree(mtime_ns=_epoch() * 1_000_000_000)
    inputs: list[Input] = []

    with reporter.step("busybox") as step:
        url, digest = config.source.busybox_url, config.source.busybox_sha256
        architecture, applets = busybox.install(tree, fetcher.fetch(url, "busybox", digest))
        inputs.append(Input("busybox", url, digest))
        step.detail = f"{architecture}, {applets} applets"

    if config.agent:
        with reporter.step("agent") as step:
            kestrel = agent.fetch(config.agent, architecture, fetcher)
            agent.install(tree, kestrel)
            uri = kestrel.url or _relative(kestrel.content.path, config)
            inputs.append(Input("agent", uri, kestrel.content.sha256))
            name = kestrel.version or uri.rpartition("/")[2]
            step.detail = f"{name}, {human_size(kestrel.content.size)}"

    with reporter.step("init") as step:
        if config.init is None:
            init.install(tree, whole_file(init.SCRIPT))
            step.detail = "built in"
        elif config.init.path is None:
            init.install(tree, None)
            step.detail = "mapped"
        else:
            own = whole_file(config.init.path)
            init.install(tree, own)
            inputs.append(Input("init", _relative(own.path, config), own.sha256))
            step.detail = inputs[-1].uri

    with reporter.step("mappings") as step:
        mapped = mappings.place(tree, config.placements)
        inputs += [Input("mapping", _relative(b.path, config), b.sha256) for b in mapped]
        step.detail = f"{len(mapped)} files, {human_size(sum(blob.size for blob in mapped))}"

    if not init.is_executable(tree):
        raise ConfigError(
            f"{config.path}: the artifact would have no executable /init, and not boot",
            "Map an executable to /init, or leave out [init] to get the built-in one.",
        )
    with reporter.step("write") as step:
        artifact = _write(tree, output, tuple(inputs), reporter)
        step.detail = f"{artifact.entries} entries, {human_size(artifact.content_size)}"
    return artifact


def _write(tree: Tree, output: Path, inputs: tuple[Input, ...], reporter: Reporter) -> Artifact:
    nodes = [node for _, node in tree.walk()]
    total = sum(content_size(node.content) for node in set(nodes) if isinstance(node, File))
    digest = hashlib.sha256()
    size = 0
    with replacing(output) as file, reporter.transfer(f"writing {output.name}") as transfer:
        transfer.restart(0, total)
        for block in gzip.compress(_counted(newc.write(tree), transfer)):
            digest.update(block)
            size += file.write(block)
    return Artifact(output, size, digest.hexdigest(), len(nodes), total, inputs)


def _counted(pieces: Iterable[bytes], transfer: Transfer) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        transfer.advance(len(piece))


def _epoch() -> int:
    """SOURCE_DATE_EPOCH in seconds (reproducible-builds.org), or the default."""
    text = os.environ.get("SOURCE_DATE_EPOCH") or str(DEFAULT_EPOCH)
    if text.isascii() and text.isdigit() and int(text) <= newc.MAX_FIELD:
        return int(text)
    raise ConfigError(
        f"SOURCE_DATE_EPOCH = {text!r} is no time that an archive can hold",
        f"Set it to whole seconds since 1970, {newc.MAX_FIELD} at most, or unset it.",
    )


def _keep_sources(config: Config, output: Path) -> None:
    """Raise `ConfigError` if the output would overwrite a source, or become one."""
    target = output.resolve()
    taken = {_identity(path) for path in (target, *target.parents) if path.exists()}
    for placement in config.placements:
        if placement.file_type != S_IFLNK and _identity(placement.source) in taken:
            raise ConfigError(
                f"{output} lies in what [mappings] takes from {placement.source},"
                " so that every build would contain the one before",
                "Choose another place with -o FILE.",
            )
    own_init = config.init.path if config.init else None
    own_agent = config.agent.path if isinstance(config.agent, LocalAgent) else None
    if any(path and _identity(path) in taken for path in (config.path, own_init, own_agent)):
        raise ConfigError(f"{output} is an input of this build", "Choose another with -o FILE.")


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _relative(path: Path, config: Config) -> str:
    """A path as the config has it: relative to its folder where it lies below."""
    folder = config.path.parent
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
