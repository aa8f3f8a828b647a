"""Builds bootable plugin artifacts for Volant microVMs, reproducibly, on Linux.

    import fledge

    artifact = fledge.build("fledge.toml")
    print(artifact.path, artifact.digest)

The names in ``__all__`` are public; everything else may change without notice. Operations accept
strings and paths, print nothing and raise `FledgeError`. A `Session` sets the cache, the reporter,
the network policy and the environment of an operation. Without a session, an operation uses the
environment of this process and reports nothing. Public names are imported when they are first
used, so ``import fledge`` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fledge._version import __version__

if TYPE_CHECKING:
    from fledge.errors import (
        ConfigError,
        CorruptError,
        ExpectationError,
        FledgeError,
        HostError,
        NetworkError,
        OfflineError,
    )
    from fledge.formats import FORMATS, Format, Opened, open_artifact
    from fledge.host.process import tune_for_builds
    from fledge.host.settings import Settings
    from fledge.machine.check import Finding, KernelCheck
    from fledge.machine.console import Ending
    from fledge.machine.kconfig import KernelConfig, State
    from fledge.oci.manifest import Platform
    from fledge.operations.analyze import Analysis, analyze
    from fledge.operations.boot import Console, Gate, Machine, boot, boot_command
    from fledge.operations.build import Artifact, build
    from fledge.operations.builds import BuildResult, build_all
    from fledge.operations.check import check, check_target
    from fledge.operations.diff import Change, Detail, Difference, diff
    from fledge.operations.doctor import Resource, examine
    from fledge.operations.fetch import fetch
    from fledge.operations.init import init
    from fledge.operations.inspect import Program, Summary, inspect
    from fledge.operations.kernel import check_kernel
    from fledge.operations.lock import Lookups, lock
    from fledge.operations.manifest import manifest
    from fledge.operations.migrate import migrate
    from fledge.operations.plan import BuildPlan, plan
    from fledge.operations.pull import Pulled, pull
    from fledge.operations.push import Pushed, push
    from fledge.operations.sbom import sbom
    from fledge.operations.seal import SealCheck, verify_seal
    from fledge.operations.sign import KeyPair, keygen, sign
    from fledge.operations.trust import Trusted, verify_signatures
    from fledge.operations.verify import Verification, verify
    from fledge.project.config import Config
    from fledge.project.jsonschema import json_schema
    from fledge.project.keys import PublicKey
    from fledge.project.manifest import PluginManifest
    from fledge.project.policy import Policy
    from fledge.project.toml import InvalidConfig
    from fledge.report import Job, Reporter, Step, Transfer
    from fledge.session import Session
    from fledge.sources.inputs import Input
    from fledge.sources.kinds import SOURCES
    from fledge.sources.source import Kind, Source
    from fledge.store.cache import Cache
    from fledge.tree import Tree
    from fledge.tree.digest import Digest
    from fledge.tree.kernel import Requirement

_PUBLIC_NAMES = {
    "fledge.errors": (
        *("ConfigError", "CorruptError", "ExpectationError", "FledgeError", "HostError"),
        *("NetworkError", "OfflineError"),
    ),
    "fledge.formats": ("FORMATS", "Format", "Opened", "open_artifact"),
    "fledge.host.process": ("tune_for_builds",),
    "fledge.host.settings": ("Settings",),
    "fledge.machine.check": ("Finding", "KernelCheck"),
    "fledge.machine.kconfig": ("KernelConfig", "State"),
    "fledge.oci.manifest": ("Platform",),
    "fledge.machine.console": ("Ending",),
    "fledge.operations.analyze": ("Analysis", "analyze"),
    "fledge.operations.boot": ("Console", "Gate", "Machine", "boot", "boot_command"),
    "fledge.operations.build": ("Artifact", "build"),
    "fledge.operations.builds": ("BuildResult", "build_all"),
    "fledge.operations.check": ("check", "check_target"),
    "fledge.operations.kernel": ("check_kernel",),
    "fledge.operations.diff": ("Change", "Detail", "Difference", "diff"),
    "fledge.operations.doctor": ("Resource", "examine"),
    "fledge.operations.fetch": ("fetch",),
    "fledge.operations.init": ("init",),
    "fledge.operations.inspect": ("Program", "Summary", "inspect"),
    "fledge.operations.lock": ("Lookups", "lock"),
    "fledge.operations.manifest": ("manifest",),
    "fledge.operations.migrate": ("migrate",),
    "fledge.operations.plan": ("BuildPlan", "plan"),
    "fledge.operations.pull": ("Pulled", "pull"),
    "fledge.operations.push": ("Pushed", "push"),
    "fledge.operations.sign": ("KeyPair", "keygen", "sign"),
    "fledge.operations.sbom": ("sbom",),
    "fledge.operations.seal": ("SealCheck", "verify_seal"),
    "fledge.operations.trust": ("Trusted", "verify_signatures"),
    "fledge.operations.verify": ("Verification", "verify"),
    "fledge.project.config": ("Config",),
    "fledge.project.jsonschema": ("json_schema",),
    "fledge.project.keys": ("PublicKey",),
    "fledge.project.manifest": ("PluginManifest",),
    "fledge.project.policy": ("Policy",),
    "fledge.project.toml": ("InvalidConfig",),
    "fledge.report": ("Job", "Reporter", "Step", "Transfer"),
    "fledge.session": ("Session",),
    "fledge.sources.kinds": ("SOURCES",),
    "fledge.sources.inputs": ("Input",),
    "fledge.sources.source": ("Kind", "Source"),
    "fledge.store.cache": ("Cache",),
    "fledge.tree": ("Tree",),
    "fledge.tree.digest": ("Digest",),
    "fledge.tree.kernel": ("Requirement",),
}
"""The public names by the module that defines them."""

__all__ = [
    "FORMATS",
    "SOURCES",
    "Analysis",
    "Artifact",
    "BuildPlan",
    "BuildResult",
    "Cache",
    "Change",
    "Config",
    "ConfigError",
    "Console",
    "CorruptError",
    "Detail",
    "Difference",
    "Digest",
    "Ending",
    "ExpectationError",
    "Finding",
    "FledgeError",
    "Format",
    "Gate",
    "HostError",
    "Input",
    "InvalidConfig",
    "Job",
    "KernelCheck",
    "KernelConfig",
    "KeyPair",
    "Kind",
    "Lookups",
    "Machine",
    "NetworkError",
    "OfflineError",
    "Opened",
    "Platform",
    "PluginManifest",
    "Policy",
    "Program",
    "PublicKey",
    "Pulled",
    "Pushed",
    "Reporter",
    "Requirement",
    "Resource",
    "SealCheck",
    "Session",
    "Settings",
    "Source",
    "State",
    "Step",
    "Summary",
    "Transfer",
    "Tree",
    "Trusted",
    "Verification",
    "__version__",
    "analyze",
    "boot",
    "boot_command",
    "build",
    "build_all",
    "check",
    "check_kernel",
    "check_target",
    "diff",
    "examine",
    "fetch",
    "init",
    "inspect",
    "json_schema",
    "keygen",
    "lock",
    "manifest",
    "migrate",
    "open_artifact",
    "plan",
    "pull",
    "push",
    "sbom",
    "sign",
    "tune_for_builds",
    "verify",
    "verify_seal",
    "verify_signatures",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    for module, names in _PUBLIC_NAMES.items():
        if name in names:
            value = getattr(import_module(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
