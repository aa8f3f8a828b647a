"""Validates a fledge.toml and the files that it names, and checks what a kernel can boot."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from fledge.host.files import PathLike
from fledge.machine import check as machine
from fledge.machine import kernels
from fledge.machine.check import KernelCheck
from fledge.machine.kernels import Kernel
from fledge.operations import boots
from fledge.operations.arguments import (
    ConfigLike,
    PlatformLike,
    as_config,
    as_session,
    start_assembly,
)
from fledge.operations.build import default_output, laying
from fledge.operations.kernel import target
from fledge.operations.manifest import artifact_url, check_settings, draft
from fledge.project import lock
from fledge.project.config import Config
from fledge.report import Reporter
from fledge.session import Session
from fledge.tree.kernel import needed_by


def check(
    config: ConfigLike = "fledge.toml",
    *,
    platform: PlatformLike | None = None,
    manifest: PathLike | None = None,
    session: Session | None = None,
) -> Config:
    """Read and validate a fledge.toml and the files that it names, without downloading anything.

    The sources are laid over a tree as for `build`, so everything that a build would find wrong
    with them is found now. Those that must be downloaded, and are not in the cache, are left out.
    ``manifest`` is a file with the settings of the plugin manifest. Nothing is written but the
    cache.

    Raises `InvalidConfig` with all problems of the config, and the errors of `build`.
    """
    config = as_config(config, manifest)
    _lay(config, platform, target(config), session)
    return config


def check_target(
    config: ConfigLike = "fledge.toml",
    kernel: PathLike | None = None,
    *,
    platform: PlatformLike | None = None,
    manifest: PathLike | None = None,
    session: Session | None = None,
) -> KernelCheck | None:
    """Do as `check`, and check whether a kernel can boot the artifact.

    ``kernel`` is debian, firecracker, kata, libkrun or volant, or the path of a kernel image or
    of a kernel's configuration. None: the one that ``[target]`` names; if it names none, returns
    None. Raises `ConfigError` if there is no such kernel, and what `check` raises.
    """
    config = as_config(config, manifest)
    found = target(config)
    if kernel:
        found = Kernel(str(kernel), kernels.find(str(kernel), Path()))
    architecture = _lay(config, platform, found, session)
    if kernel is None and config.target.kernel is None:
        return None
    return machine.check(needed_by(config.requirements), found.config, architecture)


def _lay(
    config: Config, platform: PlatformLike | None, kernel: Kernel, session: Session | None
) -> str:
    """Lay the sources over a tree and check that, with what can be known offline.

    ``kernel`` is the one that is to boot the artifact. Returns the architecture
    of the artifact (OCI name; empty: not known).
    """
    session = replace(as_session(session), offline=True)
    output = default_output(config)
    url = artifact_url(config.manifest, None, output) if config.manifest else None
    if url:
        check_settings(config, output, url)
    pins = lock.load_pins(config, Reporter(), strict=False)
    assembly = start_assembly(config, platform, session)
    is_whole = True
    for source in config.sources:
        with laying(source, assembly) as step:
            summary = source.check(assembly, pins.find(source, assembly))
            is_whole = is_whole and summary is not None
            left_out = f"{source.missing}, so it is not checked"
            step.detail = left_out if summary is None else summary
    if is_whole:
        boots.check(config, assembly, kernel)
        if url:
            draft(config, assembly, output, url)
    return assembly.architecture
