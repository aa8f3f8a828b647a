"""Compares what an artifact needs with what a kernel can do."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from fledge.machine.kconfig import ARCHITECTURES, KernelConfig, State
from fledge.tree.kernel import Requirement
from fledge.tree.programs import COMPATIBLE, Problem

_ORDER = list(State)
"""The best state first."""


class Finding(msgspec.Struct, frozen=True):
    """A requirement, and how a kernel meets it."""

    requirement: Requirement
    state: State
    reason: str
    """The option that decided, all options if none is there, or the version that is needed; of a
    program that cannot run, why."""
    advice: str
    """What to change. Empty if it is built in."""

    @property
    def prevents_boot(self) -> bool:
        """Whether the artifact does not boot because of it, or only with an initramfs that loads
        the module.
        """
        return self.requirement.essential and self.state is not State.BUILT_IN


class KernelCheck(msgspec.Struct, frozen=True):
    """Whether a kernel can boot an artifact."""

    kernel: KernelConfig
    findings: tuple[Finding, ...]
    unchecked: str = ""
    """Why the files of the artifact were not checked. Empty: they were, or there are none yet."""

    @property
    def boots(self) -> bool:
        """Whether the kernel boots the artifact, with nothing else to help it."""
        return not any(each.prevents_boot for each in self.findings)


def check(
    requirements: Iterable[Requirement], kernel: KernelConfig, architecture: str = ""
) -> KernelCheck:
    """Compare requirements with the configuration of a kernel.

    ``architecture`` is that of the artifact (OCI name; empty: not known).
    """
    known = architecture and kernel.architecture
    first = (_find_architecture(architecture, kernel),) if known else ()
    return KernelCheck(kernel, (*first, *(_find(each, kernel) for each in requirements)))


def unable(role: str, why: Problem) -> Finding:
    """Return the finding that a program cannot run without which the artifact does not boot."""
    advice = why.advice[:1].lower() + why.advice[1:].rstrip(".")
    return Finding(Requirement(role), State.MISSING, why.text, advice)


def _find_architecture(architecture: str, kernel: KernelConfig) -> Finding:
    own = kernel.architecture or ""
    runs = architecture == own or (own, architecture) in COMPATIBLE
    names = {name: f"CONFIG_{option}" for option, name in ARCHITECTURES.items()}
    requirement = Requirement(f"{architecture} programs")
    if runs:
        return Finding(requirement, State.BUILT_IN, names[own], "")
    advice = f"use a kernel for {architecture}, or build the artifact for {own}"
    return Finding(requirement, State.MISSING, names.get(architecture, ""), advice)


def _find(requirement: Requirement, kernel: KernelConfig) -> Finding:
    since = requirement.since
    if since and kernel.version and kernel.version < since:
        version = f"Linux {since[0]}.{since[1]}"
        return Finding(requirement, State.MISSING, version, f"use {version} or later")
    if not requirement.options:
        if since:
            return Finding(requirement, State.BUILT_IN, f"Linux {since[0]}.{since[1]}", "")
        advice = "no Linux can do it: make the artifact without it"
        return Finding(requirement, State.MISSING, "", advice)
    option = min(requirement.options, key=lambda each: _ORDER.index(kernel.state(each)))
    state = kernel.state(option)
    if state is State.BUILT_IN:
        return Finding(requirement, state, f"CONFIG_{option}", "")
    either = " or ".join(f"CONFIG_{each}=y" for each in requirement.options)
    if state is State.MODULE:
        where = "from an initramfs" if requirement.essential else "in the guest"
        advice = f"load the module {where}, or build the kernel with CONFIG_{option}=y"
        return Finding(requirement, state, f"CONFIG_{option}", advice)
    advice = f"build the kernel with {either}"
    if requirement.instead:
        advice += f", or {requirement.instead}"
    return Finding(requirement, state, either.replace("=y", ""), advice)
