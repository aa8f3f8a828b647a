"""Checks whether a kernel can boot an artifact, and finds the kernel that a config names."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from fledge.errors import ConfigError, CorruptError, FledgeError
from fledge.formats import Opened, artifact_requirements, open_artifact
from fledge.host.files import PathLike
from fledge.machine import check as machine
from fledge.machine import kernels
from fledge.machine.check import KernelCheck
from fledge.machine.kernels import VOLANT, Kernel
from fledge.oci.manifest import parse_platform
from fledge.operations import boots, seal
from fledge.project import provenance
from fledge.project.config import Config
from fledge.sources import paths
from fledge.tree import File, elf
from fledge.tree.content import hash_file, read_range
from fledge.tree.kernel import DM_VERITY, needed_by, xattr_names


def check_kernel(kernel: PathLike, artifact: PathLike) -> KernelCheck:
    """Check whether a kernel can boot an artifact, whoever made it, and start its first program.

    ``kernel`` is debian, firecracker, kata, libkrun or volant, or the path of a kernel image or
    of a kernel's configuration. Raises `ConfigError` if there is no such kernel or artifact,
    `CorruptError` if one of them is damaged, `FledgeError` if it cannot be read.
    """
    requirements = [*artifact_requirements(artifact)]
    if seal.is_sealed(Path(artifact)):
        requirements += DM_VERITY
    named = Kernel(str(kernel), kernels.find(str(kernel), Path()))
    architecture = _recorded_architecture(Path(artifact))
    try:
        with open_artifact(artifact) as opened:
            architecture = architecture or _architecture(opened)
            unable = boots.find_unable(opened.format, opened.tree, architecture, named)
            needed = needed_by(requirements, xattr_names(opened.tree))
            found = machine.check(needed, named.config, architecture)
            return replace(found, findings=(*found.findings, *unable))
    except CorruptError:
        raise
    except FledgeError as error:  # a filesystem that fledge cannot read
        found = machine.check(needed_by(requirements), named.config, architecture)
        return replace(found, unchecked=error.message)


def _recorded_architecture(artifact: Path) -> str:
    """Return the architecture of an artifact (OCI name) by its provenance; empty if it has none for
    these bytes.
    """
    with suppress(FledgeError):
        record = provenance.load(artifact)
        if record.digest == hash_file(artifact).digest:
            return parse_platform(record.platform).architecture
    return ""


def _architecture(artifact: Opened) -> str:
    """Return the architecture of an artifact (OCI name) by its programs; empty if none tells."""
    for path in (*artifact.format.init_paths, paths.AGENT, paths.BUSYBOX, b"/bin/sh"):
        node = artifact.tree.get(path, follow=True)
        if isinstance(node, File):
            start = read_range(node.content, 0, elf.ELF_HEADER_SIZE)
            if name := elf.architecture(start):
                return name
    return ""


def target(config: Config) -> Kernel:
    """Return the kernel that ``[target]`` names, or else Volant's.

    Raises `ConfigError`, with the key, if it cannot be found.
    """
    name = config.target.kernel or VOLANT
    try:
        return Kernel(name, kernels.find(name, config.path.parent))
    except ConfigError as error:
        raise ConfigError(f"{config.path}: target.kernel: {error.message}", error.hint) from error
