"""Checks whether a kernel can boot an artifact, or what a config describes."""

from __future__ import annotations

from pathlib import Path

from fledge.errors import ConfigError
from fledge.formats import artifact_requirements
from fledge.host.files import PathLike
from fledge.machine import check as machine
from fledge.machine import kernels
from fledge.machine.check import KernelCheck
from fledge.machine.kconfig import KernelConfig
from fledge.operations.arguments import ConfigLike, as_config
from fledge.project.config import Config

VOLANT = "volant"
"""The kernel that a build has in mind if the config names none."""


def check_kernel(kernel: PathLike, artifact: PathLike) -> KernelCheck:
    """Check whether a kernel can boot an artifact, whoever made it.

    ``kernel`` is debian, firecracker, kata, libkrun or volant, or the path of a kernel image or
    of a kernel's configuration. Raises `ConfigError` if there is no such kernel or artifact,
    `CorruptError` if one of them is damaged, `FledgeError` if it cannot be read.
    """
    return machine.check(artifact_requirements(artifact), kernels.find(str(kernel), Path()))


def check_target(config: ConfigLike, kernel: PathLike | None = None) -> KernelCheck | None:
    """Check whether a kernel can boot the artifact that a fledge.toml describes.

    ``kernel`` is as in `check_kernel`. None: the one that ``[target]`` names; if it names none,
    returns None. Raises what `check_kernel` raises, and `InvalidConfig`.
    """
    config = as_config(config)
    if kernel is None and config.target.kernel is None:
        return None
    found = kernels.find(str(kernel), Path()) if kernel else target_kernel(config)
    return machine.check(config.format.requirements(), found)


def target(config: Config) -> str:
    """Return the name or path of the kernel that ``[target]`` names, or else `VOLANT`."""
    return config.target.kernel or VOLANT


def target_kernel(config: Config) -> KernelConfig:
    """Return the kernel that ``[target]`` names, or else Volant's.

    Raises `ConfigError`, with the key, if it cannot be found.
    """
    try:
        return kernels.find(target(config), config.path.parent)
    except ConfigError as error:
        raise ConfigError(f"{config.path}: target.kernel: {error.message}", error.hint) from error
