"""Builds an artifact: lays the sources over a tree, writes the tree, records provenance."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType

import msgspec

from fledge.errors import CorruptError, FledgeError, explained_memory, unreadable
from fledge.host.destination import Destination
from fledge.host.files import NewFile, PathLike, replacing_together
from fledge.host.output import Hasher
from fledge.machine.kernels import Kernel
from fledge.oci.manifest import Platform, parse_platform
from fledge.operations import beside, boots, seal
from fledge.operations import manifest as plugin
from fledge.operations.arguments import (
    ConfigLike,
    PlatformLike,
    as_config,
    as_session,
    start_assembly,
)
from fledge.operations.kernel import target
from fledge.operations.outputs import check_outputs
from fledge.operations.shared_cache import EarlierBuild, SharedBuild, Sharing
from fledge.project import lock, provenance, signatures
from fledge.project.config import Config
from fledge.project.lock import PinFinder
from fledge.project.manifest import (
    PluginManifest,
    path_beside,
    relocated,
    serialize,
)
from fledge.project.provenance import Provenance
from fledge.project.sboms.table import SbomFormat
from fledge.project.sboms.table import path_beside as sbom_path
from fledge.report import Step, counted, human_size
from fledge.session import Session
from fledge.sources.inputs import Input
from fledge.sources.source import Assembly, Source
from fledge.store.cache import BackgroundVerifier
from fledge.tree import File, Tree, TreeError
from fledge.tree.content import content_size
from fledge.tree.digest import Digest
from fledge.tree.kernel import needed_by


class Beside(msgspec.Struct, frozen=True):
    """The files that only some builds write beside an artifact. None: it is not there."""

    hash_tree: Path | None = None
    """The hash tree of dm-verity, if it is not in the artifact."""
    signatures: Path | None = None
    """The signatures of the provenance."""
    root_signature: Path | None = None
    """The signature of the root hash, for a kernel."""
    spdx: Path | None = None
    """The software bill of materials as SPDX."""
    cyclonedx: Path | None = None
    """The same as CycloneDX."""


class Artifact(msgspec.Struct, frozen=True):
    """The result of a build."""

    path: Path
    size: int
    """Size of the file in bytes."""
    digest: Digest
    """The digest of the file."""
    platform: Platform
    """The platform that it runs on."""
    entries: int | None
    """The number of paths in the tree, including the root. None: it was built elsewhere."""
    content_size: int | None
    """Bytes in all files of the tree. A file with several names counts once. None: as above."""
    inputs: tuple[Input, ...]
    """The inputs, in the order of the build."""
    uncompressed: Digest | None
    """The digest of the uncompressed content; None if the artifact is not compressed."""
    manifest: PluginManifest | None
    """The plugin manifest, which is a file beside the artifact; None if the config has none."""
    root_hash: Digest | None = None
    """The root hash of dm-verity; None if the artifact is not sealed."""
    sboms: Mapping[SbomFormat, Digest] = {}
    """The digests of the software bills of materials; empty if the config asks for none."""
    beside: Beside = Beside()
    """The files beside the artifact that not every build writes."""


def build(
    config: ConfigLike = "fledge.toml",
    output: PathLike | None = None,
    *,
    platform: PlatformLike | None = None,
    locked: bool = False,
    manifest: PathLike | None = None,
    base_url: str | None = None,
    sharing: Sharing | None = None,
    session: Session | None = None,
) -> Artifact:
    """Build the artifact that a fledge.toml describes, and write it to ``output`` atomically.

    ``output`` defaults to ``plugin.cpio`` or the name of the image, with the suffix of the format,
    in the working directory.
    ``platform`` selects an image from an index; it defaults to linux on this machine. If a lock
    is beside the config, the build uses the pinned inputs; with ``locked``, the lock must exist
    and pin every input. The same config and inputs give the same bytes on every machine.
    Provenance is written beside the artifact, and a plugin manifest if the config describes one,
    and software bills of materials;
    ``manifest`` is a file with its settings, ``base_url`` where the artifact will be. A build that
    is locked takes the artifact from the project's build cache if that has it; ``sharing`` says
    whom to trust in that, and whether to keep the artifact there. Raises `FledgeError`; an older
    artifact at ``output`` then stays unchanged.
    """
    config, session = as_config(config, manifest), as_session(session)
    output = Path(output) if output else default_output(config)
    if base_url and not config.manifest:
        raise plugin.no_settings(config)
    check_outputs(config, outputs_of(config, output))
    pins = lock.load_pins(config, session.reporter, strict=locked)
    start = start_assembly(config, platform, session)
    return write_artifact(config, output, pins, start, base_url, sharing or Sharing())


def outputs_of(config: Config, output: Path) -> list[Path]:
    """Return the files that a build writes, the artifact first."""
    manifests = [path_beside(output)] if config.manifest else []
    sboms = _sboms_of(config, output).values()
    return [output, provenance.path_beside(output), *_trees_of(config, output), *sboms, *manifests]


def _sboms_of(config: Config, output: Path) -> dict[SbomFormat, Path]:
    """Return the paths of the software bills of materials beside an artifact, by format."""
    formats = config.sbom.formats if config.sbom else ()
    return {kind: sbom_path(output, kind) for kind in formats}


def _trees_of(config: Config, output: Path) -> list[Path]:
    """Return the files with hash trees beside an artifact: none or one."""
    is_beside = config.verity and config.verity.is_beside
    return [seal.path_beside(output)] if is_beside else []


def write_artifact(
    config: Config,
    output: Path,
    pins: PinFinder,
    start: Assembly,
    base_url: str | None,
    sharing: Sharing,
) -> Artifact:
    """Build from pinned inputs, and write the artifact and the files beside it atomically.

    ``start`` is an empty assembly, ``base_url`` and ``sharing`` are as for `build`. Raises
    `FledgeError`.
    """
    url = plugin.artifact_url(config.manifest, base_url, output) if config.manifest else None
    if url:
        plugin.check_settings(config, output, url)
    kernel = target(config)
    outputs = outputs_of(config, output)
    stale = None if config.manifest else beside.recorded_manifest(output)
    shared = SharedBuild.open(pins, start, output.name, sharing)
    signer = beside.open_signer(sharing.sign_with, start.session)
    certificate = beside.load_certificate(config, signer, start.session)
    old_root = seal.recorded_root_hash(output)
    old_sboms = beside.recorded_sboms(output)
    with replacing_together(*outputs) as new_files:
        files = dict(zip(outputs, new_files, strict=True))
        new, tree = files[output], files.get(seal.path_beside(output))
        sboms = {kind: files[path] for kind, path in _sboms_of(config, output).items()}
        pulled = shared.pull(new) if shared else None
        if pulled:
            artifact = _as_artifact(pulled, output, url)
            if tree:
                seal.write_again(new, tree, pulled.record)
            for kind, file in sboms.items():
                _write_file(file, pulled.sboms[kind])
        else:
            artifact = build_pinned(config, pins, start, new, output, url, tree, sboms)
        statement = provenance.serialize(describe(config, artifact, start.epoch))
        _write_file(files[provenance.path_beside(output)], statement)
        if artifact.manifest:
            _write_file(files[path_beside(output)], serialize(artifact.manifest))
    if not config.manifest:
        beside.tidy_manifest(config, output, artifact.digest, stale, start.session)
    beside.sign(output, statement, pulled.envelope if pulled else None, signer, start.session)
    if not _trees_of(config, output):
        beside.tidy_tree(output, old_root, start.session)
    beside.tidy_sboms(old_sboms, _sboms_of(config, output).values(), start.session)
    root = artifact.root_hash
    beside.sign_root_hash(output, root, old_root, certificate, signer, start.session)
    if shared:
        shared.keep(output, is_pulled=pulled is not None)
    _note_kernel(config, kernel, artifact.platform.architecture, start.session)
    return msgspec.structs.replace(artifact, beside=find_beside(output, root, artifact.sboms))


def _write_file(new: NewFile, data: bytes) -> None:
    with new.open() as file:
        file.write(data)


def find_beside(output: Path, root_hash: Digest | None, sboms: Collection[SbomFormat]) -> Beside:
    """Return the files beside an artifact that was just built, or is up to date.

    ``root_hash`` is that of dm-verity; None: it is not sealed. ``sboms`` are the formats of its
    software bills of materials.
    """
    tree, signed = seal.path_beside(output), signatures.path_beside(output)
    root_signature = seal.signature_path(output)
    return Beside(
        tree if root_hash and tree.is_file() else None,
        signed if signed.is_file() else None,
        root_signature if root_hash and root_signature.is_file() else None,
        **{kind: sbom_path(output, kind) for kind in sboms},
    )


def _as_artifact(pulled: EarlierBuild, output: Path, url: str | None) -> Artifact:
    """Return the result of a build that was pulled from the cache of builds."""
    record, manifest = pulled.record, pulled.manifest
    return Artifact(
        path=output,
        size=pulled.size,
        digest=record.digest,
        platform=parse_platform(record.platform),
        entries=None,
        content_size=None,
        inputs=record.inputs,
        uncompressed=record.uncompressed,
        manifest=relocated(manifest, url) if manifest and url else None,
        root_hash=record.root_hash,
        sboms=record.sboms,
    )


def _note_kernel(config: Config, kernel: Kernel, architecture: str, session: Session) -> None:
    """Report what the kernel that is to boot the artifact lacks.

    Volant's kernel is for amd64. Who builds for another architecture, and names no kernel, has
    another in mind.
    """
    known = architecture if config.target.kernel else ""
    for lack in boots.lacks(needed_by(config.requirements), kernel, known):
        session.reporter.note(lack)


def default_output(config: Config, platform: str = "") -> Path:
    """Return the default path of an artifact, such as ``nginx.img``.

    With a ``platform`` such as ``arm/v7``, that is in the name: ``nginx-arm-v7.img``.
    """
    names = (source.artifact_name() for source in config.sources)
    name = config.format.default_output(next(filter(None, names), None))
    if platform:
        suffix = "." + config.format.default_output(None).partition(".")[2]
        name = f"{name.removesuffix(suffix)}-{platform.replace('/', '-')}{suffix}"
    return Path(name)


def build_pinned(
    config: Config,
    pins: PinFinder,
    start: Assembly,
    new: NewFile,
    output: Path,
    url: str | None,
    tree: NewFile | None = None,
    sboms: Mapping[SbomFormat, NewFile] = MappingProxyType({}),
) -> Artifact:
    """Build an artifact from pinned inputs, and build it again if a cached layer was damaged.

    Cached layers are verified in the background while they are in use, because they are rarely
    damaged. ``new`` is an empty file that is worth nothing before this returns, ``output`` the path
    that it will get, ``start`` an empty assembly, and ``url`` where the plugin manifest says that
    the artifact is; None: without a manifest. ``tree`` is an empty file for a hash tree that is to
    be beside the artifact; None: that is not kept. ``sboms`` are empty files for the software bills
    of materials; those of other formats are made and not kept. Raises `FledgeError`.
    """
    config.format.check(start.session.settings)
    with closing(BackgroundVerifier(start.session.cache)) as verification:
        try:
            assembly = start.empty_copy(verification)
            return _build_once(config, pins, assembly, new, output, url, tree, sboms)
        except FledgeError:
            if verification.passes():
                raise
    start.session.reporter.note("a layer in the cache is damaged: building again without it")
    return _build_once(config, pins, start.empty_copy(None), new, output, url, tree, sboms)


def _build_once(
    config: Config,
    pins: PinFinder,
    assembly: Assembly,
    new: NewFile,
    output: Path,
    url: str | None,
    tree: NewFile | None,
    sboms: Mapping[SbomFormat, NewFile],
) -> Artifact:
    with explained_memory(f"the artifact of {config.path}"):
        lay_sources(config.sources, pins, assembly)
        boots.check(config, assembly, target(config))
        manifest = plugin.draft(config, assembly, output, url) if url else None
        with assembly.session.reporter.step("write") as step:
            artifact = _write(config, assembly, new, output, tree, step)
        if manifest:
            manifest = plugin.sealed(manifest, artifact.digest, artifact.root_hash)
        texts = _list_software(config, assembly, artifact)
        for kind, file in sboms.items():
            _write_file(file, texts[kind])
        digests = {kind: Digest.of(text) for kind, text in texts.items()}
        return msgspec.structs.replace(artifact, manifest=manifest, sboms=digests)


def _list_software(
    config: Config, assembly: Assembly, artifact: Artifact
) -> Mapping[SbomFormat, bytes]:
    """Return the software bills of materials that the config asks for."""
    if not config.sbom:
        return {}
    # Imported late, because a build without one needs none of its libraries.
    from fledge.operations import sbom  # noqa: PLC0415

    return sbom.documents(
        assembly.tree,
        artifact.path.name,
        artifact.digest,
        artifact.inputs,
        assembly.epoch,
        config.sbom.formats,
        assembly.session.reporter,
    )


def lay_sources(sources: Iterable[Source], pins: PinFinder, assembly: Assembly) -> None:
    """Lay the sources over the tree, in order. Raises `FledgeError`."""
    for source in sources:
        with laying(source, assembly) as step:
            step.detail = source.lay(assembly, pins.find(source, assembly))
        assembly.tree.origin += 1


@contextmanager
def laying(source: Source, assembly: Assembly) -> Iterator[Step]:
    """Report a step in which a source is laid over the tree, and explain what fails in it."""
    with assembly.session.reporter.step(source.role) as step:
        try:
            yield step
        except TreeError as error:
            raise CorruptError(
                f"the {source.role} cannot be added to the image: {error}"
            ) from error
        except OSError as error:
            raise unreadable(Path(error.filename or source.role), error) from error


def _write(
    config: Config,
    assembly: Assembly,
    new: NewFile,
    output: Path,
    hash_tree: NewFile | None,
    step: Step,
) -> Artifact:
    session, tree = assembly.session, assembly.tree
    with new.open() as file, closing(Hasher()) as hasher:
        if file.seek(0, os.SEEK_END):
            file.truncate(0)  # what a build that found a damaged layer has left
        uncompressed = config.format.write(
            tree, Destination(new, hasher, session.reporter, session.settings)
        )
        root_hash = None
        if config.verity:
            is_appended = not config.verity.is_beside
            with session.reporter.work("sealing"):
                root_hash = seal.write(file.fileno(), hasher, hash_tree, is_appended=is_appended)
        size = os.fstat(file.fileno()).st_size
        entries = sum(1 for _ in tree.nodes())
        total = _content_size(tree)
        step.detail = f"{counted(entries, 'entry')}, {human_size(total)}"
        if assembly.verification and not assembly.verification.passes():
            raise CorruptError("a layer in the cache is damaged")
        # Last, because hashing continues in the background.
        digest = hasher.digest()
    return Artifact(
        path=output,
        size=size,
        digest=digest,
        platform=assembly.platform,
        entries=entries,
        content_size=total,
        inputs=tuple(assembly.inputs),
        uncompressed=uncompressed,
        manifest=None,
        root_hash=root_hash,
    )


def _content_size(tree: Tree) -> int:
    files = {node for node in tree.nodes() if isinstance(node, File)}
    return sum(content_size(file.content) for file in files)


def describe(config: Config, artifact: Artifact, epoch: int) -> Provenance:
    """Describe a build, as provenance records it. ``epoch`` is in seconds since 1970."""
    return Provenance(
        name=artifact.path.name,
        digest=artifact.digest,
        uncompressed=artifact.uncompressed,
        config=config.data,
        platform=str(artifact.platform),
        epoch=epoch,
        inputs=artifact.inputs,
        versions=provenance.versions(has_sbom=bool(config.sbom)),
        manifest=Digest.of(serialize(artifact.manifest)) if artifact.manifest else None,
        url=artifact.manifest.url if artifact.manifest else None,
        root_hash=artifact.root_hash,
        sboms=artifact.sboms,
    )
