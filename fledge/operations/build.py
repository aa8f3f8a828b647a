"""The pipeline: gather the sources, overlay them in a tree, write it, record what it came from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from functools import cached_property
from pathlib import Path
from stat import S_IFLNK
from typing import BinaryIO

import msgspec

from fledge import ext4
from fledge.cpio import gzip, newc
from fledge.errors import ConfigError, CorruptError, FledgeError
from fledge.host.files import check_output, replacing
from fledge.host.output import Digest, Output
from fledge.loopfs import writer as loop
from fledge.net.fetch import Fetcher
from fledge.oci import layers
from fledge.oci.image import Image
from fledge.oci.manifest import Platform, host_platform, parse_platform
from fledge.oci.pinned import open_pinned
from fledge.oci.places import open_image
from fledge.oci.reference import Name, default_name
from fledge.project import lock, provenance
from fledge.project.config import Agent, Config, Filesystem, LocalAgent
from fledge.project.provenance import Input, Provenance
from fledge.report import Reporter, Step, Transfer, human_size
from fledge.sources import agent, busybox, init, mappings
from fledge.store.cache import Cache, Verification
from fledge.tree import NANOSECONDS, File, Node, Tree, TreeError
from fledge.tree.content import content_size, whole_file

DEFAULT_EPOCH = 1704067200
"""2024-01-01T00:00:00Z: the time of all that fledge adds, without SOURCE_DATE_EPOCH."""

DEFAULT_OUTPUT = Path("plugin.cpio.gz")

ENTRYPOINT = b"/etc/fsify-entrypoint"
"""Where the engine looks for the image's config, byte for byte."""


class Artifact(msgspec.Struct, frozen=True):
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
    cpio_sha256: str | None
    """Of the archive before compression, if it is one."""


def build(
    config: Config,
    output: Path | None = None,
    *,
    cache: Cache,
    reporter: Reporter,
    offline: bool = False,
    platform: Platform | None = None,
    locked: bool = False,
) -> Artifact:
    """Build what ``config`` describes and put it, whole, at ``output``.

    Without ``output`` that is in the working directory, ``plugin.cpio.gz`` or the image's name
    and ``.img``. ``platform`` (default: linux on this machine) chooses among the images that a
    reference stands for. What the lock beside the config pins is as it says; with ``locked``
    there must be one, and it must pin all. The same config and inputs give the same bytes on
    every machine; the provenance is written beside them. Raises `FledgeError`; then an older
    artifact at ``output`` is as it was.
    """
    output = output or _default_output(config)
    recorded = provenance.path_beside(output)
    for path in (output, recorded):
        check_output(path)
    _keep_sources(config, (output, recorded))
    pins = lock.pins(config, reporter, strict=locked)
    fetcher = Fetcher(cache, reporter, offline)
    work = _Work(config, pins, fetcher, platform or host_platform(), _epoch())
    artifact = _make(work, output)
    provenance.write(_record(work, artifact), recorded)
    return artifact


def rebuild(record: Provenance, config: Config, output: Path, fetcher: Fetcher) -> Artifact:
    """Build once more at ``output`` what is recorded, of the recorded inputs.

    ``config`` is the recorded one, read where its files are. What the record does not pin
    comes from there. Raises `FledgeError`.
    """
    pins = lock.Pins(config, output, provenance.as_lock(record, config), False, Reporter())
    platform = parse_platform(record.platform)
    return _make(_Work(config, pins, fetcher, platform, record.epoch), output)


def _make(work: _Work, output: Path) -> Artifact:
    """Layers from the cache are used while they are verified; one is hardly ever damaged."""
    with closing(Verification(work.fetcher.cache)) as verification:
        try:
            return _attempt(msgspec.structs.replace(work, verification=verification), output)
        except FledgeError:
            if verification.passes():
                raise
    work.fetcher.reporter.note("a layer in the cache is damaged: beginning again without it")
    return _attempt(msgspec.structs.replace(work, inputs=[]), output)


def _attempt(work: _Work, output: Path) -> Artifact:
    config = work.config
    if config.strategy == "oci_rootfs":
        _check_tools(config.filesystem)
    try:
        architecture = _lay_image(work)
        if config.strategy == "initramfs":
            architecture = _lay_busybox(work, architecture)
            _lay_init(work)
        if config.agent:
            _lay_agent(work, config.agent, architecture)
    except TreeError as error:
        raise CorruptError(f"the image has no place for what fledge adds: {error}") from None
    _lay_mappings(work)
    if config.strategy == "initramfs" and not init.is_executable(work.tree):
        raise ConfigError(
            f"{config.path}: the artifact would have no executable /init, and not boot",
            "Map an executable to /init, or leave out [init] to get the built-in one.",
        )
    with work.step("write") as step:
        artifact = _write(work, output)
        step.detail = f"{artifact.entries} entries, {human_size(artifact.content_size)}"
    return artifact


class _Work(msgspec.Struct, frozen=True, dict=True):
    """A build on its way: what lays something over the tree says what it was."""

    config: Config
    pins: lock.Pins
    fetcher: Fetcher
    platform: Platform
    epoch: int
    """The time of all that fledge adds, in seconds."""
    inputs: list[Input] = msgspec.field(default_factory=list)
    verification: Verification | None = None
    """Of what is used unverified; without it nothing is."""

    @cached_property
    def tree(self) -> Tree:
        return Tree(mtime_ns=self.epoch * NANOSECONDS)

    def step(self, title: str) -> AbstractContextManager[Step]:
        return self.fetcher.reporter.step(title)


def _lay_image(work: _Work) -> str:
    """Returns the architecture of the platform; without an image nothing is laid."""
    platform = work.platform
    if reference := work.config.source.image:
        fetcher, tree = work.fetcher, work.tree
        with work.step("image") as step:
            pin = work.pins.image(platform)
            image = (
                open_pinned(reference, pin, platform, fetcher)
                if pin
                else open_image(reference, platform, fetcher)
            )
            layers.unpack(image, tree, fetcher.cache, fetcher.reporter, work.verification)
            entrypoint = File(mode=0o644, mtime_ns=tree.mtime_ns, content=image.config)
            tree.add(ENTRYPOINT, entrypoint)
            work.inputs.append(_image_input(image, work))
            step.detail = f"{image.uri}, {len(image.layers)} layers"
    return platform.architecture


def _image_input(image: Image, work: _Work) -> Input:
    facts: dict[str, object] = {
        "platform": str(work.platform),
        "diff_ids": [f"sha256:{layer.diff_id}" for layer in image.layers],
    }
    if image.manifest:
        facts["manifest"] = f"sha256:{image.manifest}"
    uri = lock.image_name(work.config)
    if isinstance(work.config.source.image, Name):
        # It could have meant either; only a registry has manifests.
        uri = f"docker://{uri}" if image.manifest else f"docker-daemon:{uri}"
    return Input("image", uri, hashlib.sha256(image.config).hexdigest(), facts)


def _lay_busybox(work: _Work, expected: str) -> str:
    """Returns the architecture that the busybox is for, and so the artifact."""
    source = work.config.source
    with work.step("busybox") as step:
        work.pins.check_busybox()
        binary = work.fetcher.fetch(source.busybox_url, "busybox", source.busybox_sha256)
        architecture, applets = busybox.install(work.tree, binary)
        if source.image and architecture != expected:
            raise ConfigError(
                f"{work.config.path}: the busybox is for {architecture}, the image for {expected}",
                f"Build with --platform linux/{architecture}, or name another busybox_url.",
            )
        work.inputs.append(Input("busybox", source.busybox_url, source.busybox_sha256))
        step.detail = f"{architecture}, {applets} applets"
    return architecture


def _lay_init(work: _Work) -> None:
    own = work.config.init
    with work.step("init") as step:
        if own is None:
            init.install(work.tree, whole_file(init.SCRIPT))
            step.detail = "built in"
        elif own.path is None:
            init.install(work.tree, None)
            step.detail = "mapped"
        else:
            file = whole_file(own.path)
            init.install(work.tree, file)
            step.detail = _relative(own.path, work.config)
            work.inputs.append(Input("init", step.detail, file.sha256))


def _lay_agent(work: _Work, source: Agent, architecture: str) -> None:
    with work.step("agent") as step:
        pin = work.pins.agent(architecture)
        kestrel = agent.fetch(source, architecture, work.fetcher, pin)
        agent.install(work.tree, kestrel)
        uri = kestrel.url or _relative(kestrel.content.path, work.config)
        facts = {"architecture": architecture}
        if kestrel.version:
            facts["version"] = kestrel.version
        work.inputs.append(Input("agent", uri, kestrel.content.sha256, facts))
        name = kestrel.version or uri.rpartition("/")[2]
        step.detail = f"{name}, {human_size(kestrel.content.size)}"


def _lay_mappings(work: _Work) -> None:
    with work.step("mappings") as step:
        for blob in (blobs := mappings.place(work.tree, work.config.placements)):
            uri = _relative(blob.path, work.config)
            work.inputs.append(Input("mapping", uri, blob.sha256))
        step.detail = f"{len(blobs)} files, {human_size(sum(blob.size for blob in blobs))}"


def _write(work: _Work, output: Path) -> Artifact:
    tree, config = work.tree, work.config
    cpio_sha256 = None
    with closing(Digest()) as digest:
        with replacing(output) as file:
            path = Path(file.name)
            if config.strategy == "initramfs":
                cpio_sha256 = _write_initramfs(tree, file, digest, work.fetcher.reporter)
            elif config.filesystem.type == "ext4":
                ext4.write(tree, path, config.filesystem, work.epoch, digest)
            else:
                loop.write(tree, path, config.filesystem)
                digest.update_file(path)
            size = path.stat().st_size
            if work.verification and not work.verification.passes():
                raise CorruptError("a layer in the cache is damaged")
        nodes = [node for _, node in tree.walk()]
        total = _content_size(nodes)
        # The last, for it goes on while the disk lets go of the old file.
        sha256 = digest.hexdigest()
    return Artifact(output, size, sha256, len(nodes), total, tuple(work.inputs), cpio_sha256)


def _content_size(nodes: Iterable[Node]) -> int:
    """Bytes in all files; those with several names count once."""
    return sum(content_size(node.content) for node in set(nodes) if isinstance(node, File))


def _record(work: _Work, artifact: Artifact) -> Provenance:
    return Provenance(
        name=artifact.path.name,
        sha256=artifact.sha256,
        cpio_sha256=artifact.cpio_sha256,
        config=work.config.data,
        platform=str(work.platform),
        epoch=work.epoch,
        inputs=artifact.inputs,
        versions=provenance.versions(),
    )


def _write_initramfs(tree: Tree, file: BinaryIO, digest: Digest, reporter: Reporter) -> str:
    """Returns the SHA-256 of the archive before compression; ``digest`` gets the file."""
    nodes = {node for _, node in tree.walk()}
    lost = sum(bool(node.xattrs) for node in nodes)
    if lost:
        reporter.note(f"{lost} files lose extended attributes, which an initramfs cannot hold")
    archive = hashlib.sha256()
    size = 0
    output = Output(file.fileno(), digest)
    with reporter.transfer("writing") as transfer, closing(output):
        transfer.restart(0, _content_size(nodes))
        for block in gzip.compress(_counted(newc.write(tree), transfer, archive)):
            output.write(block, size)
            size += len(block)
        output.finish(size)
    return archive.hexdigest()


def _default_output(config: Config) -> Path:
    if config.strategy == "oci_rootfs" and config.source.image:
        return Path(f"{default_name(config.source.image)}.img")
    return DEFAULT_OUTPUT


def _check_tools(filesystem: Filesystem) -> None:
    """What the image needs of this machine, said before anything is downloaded."""
    if filesystem.type == "ext4":
        ext4.check(filesystem)
    else:
        loop.check(filesystem)


def _counted(pieces: Iterable[bytes], transfer: Transfer, digest: hashlib._Hash) -> Iterator[bytes]:
    for piece in pieces:
        digest.update(piece)
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


def _keep_sources(config: Config, outputs: Sequence[Path]) -> None:
    """Raise `ConfigError` if an output would overwrite a source, or become one."""
    taken = {
        _identity(path): output
        for output in reversed(outputs)
        for path in (output.resolve(), *output.resolve().parents)
        if path.exists()
    }
    for placement in config.placements:
        if placement.file_type == S_IFLNK:
            continue
        if output := taken.get(_identity(placement.source)):
            raise ConfigError(
                f"{output} lies in what [mappings] takes from {placement.source},"
                " so that every build would contain the one before",
                "Choose another place with -o FILE.",
            )
    own_init = config.init.path if config.init else None
    own_agent = config.agent.path if isinstance(config.agent, LocalAgent) else None
    inputs = (config.path, lock.path_beside(config.path), own_init, own_agent)
    for path in inputs:
        if path and path.exists() and (output := taken.get(_identity(path))):
            raise ConfigError(f"{output} is an input of this build", "Choose another with -o FILE.")


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _relative(path: Path, config: Config) -> str:
    """A path as the config has it: relative to its folder where it lies below."""
    folder = config.path.parent
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
