"""Checks that an artifact can boot, as far as that can be seen without booting it."""

from __future__ import annotations

from collections.abc import Iterator

from fledge.errors import ConfigError
from fledge.formats import Format
from fledge.machine import shim
from fledge.machine.check import Finding, unable
from fledge.machine.kernels import VOLANT
from fledge.project.config import Config
from fledge.sources import paths
from fledge.sources.init import has_built_in
from fledge.sources.source import Assembly
from fledge.tree import File, Tree
from fledge.tree.content import content_size
from fledge.tree.names import printable
from fledge.tree.programs import Problem, problem

AGENT_ROOM = 256 << 10
"""Bytes that the agent needs on a disk beside its own size, for the folders that it makes."""

INIT = "/init"
"""The first program of an initramfs."""


def check(config: Config, assembly: Assembly, kernel: str) -> None:
    """Raise `ConfigError` if the artifact needs an init and has none that can start on a kernel, or
    if it has no room for the agent.

    ``kernel`` is the name or path of the kernel. What keeps another program of the project from
    running is a note, and so are the links that the init has to put back on Volant's kernel.
    """
    tree, architecture = assembly.tree, assembly.architecture
    where = f"{config.path}: the artifact would not boot"
    if config.format.needs_init and (why := init_problem(tree, architecture)):
        raise ConfigError(f"{where}: {why.text}", why.advice)
    if config.format.needs_init and kernel == VOLANT:
        if why := over_baked_problem(tree, architecture):
            raise ConfigError(f"{where} on Volant: {why.text}", why.advice)
        if lost := _lost_links(tree):
            assembly.session.reporter.note(f"{lost}: the init has to put the link back")
    _check_room(config, assembly)
    for source in config.sources:
        for path in source.programs():
            if why := problem(tree, printable(path), architecture):
                assembly.session.reporter.note(f"the {source.role} cannot run: {why.text}")


def find_unable(
    format_: type[Format], tree: Tree, architecture: str, kernel: str
) -> Iterator[Finding]:
    """Yield what keeps an artifact, whoever made it, from booting on a kernel.

    ``architecture`` is that of the artifact (OCI name; empty: not known), ``kernel`` as in `check`.
    """
    why = None
    if format_.needs_init:
        why = init_problem(tree, architecture)
        if kernel == VOLANT:
            why = why or over_baked_problem(tree, architecture)
    if why:
        yield unable("init", why)
    elif why := _agent_problem(format_, tree, architecture, kernel):
        yield unable("agent", why)


def init_problem(tree: Tree, architecture: str) -> Problem | None:
    """Say why the init of an initramfs cannot start; None if nothing stands against it."""
    node = tree.get(INIT.encode(), follow=True)
    if isinstance(node, File) and node.mode & 0o111:
        return problem(tree, INIT, architecture)
    return Problem(
        f"it has no executable {INIT}",
        f"Map an executable to {INIT}, or leave out [init] to get the built-in one.",
    )


def over_baked_problem(tree: Tree, architecture: str) -> Problem | None:
    """Say why the init of an initramfs cannot start once Volant's kernel has unpacked it over its
    own archive; None if nothing stands against it that did not before.
    """
    lost = _lost_links(tree)
    if not lost or (why := problem(shim.over_baked(tree)[0], INIT, architecture)) is None:
        return None
    return Problem(
        f"{why.text}: {lost}",
        "Use paths without these links for the init and what it needs, such as #!/usr/bin/sh, or"
        " name another kernel in [target].",
    )


def _lost_links(tree: Tree) -> str:
    """Say which links are lost over the archive in Volant's kernel; nothing if the init of a tree
    puts them back.
    """
    _, lost = shim.over_baked(tree)
    if not lost or has_built_in(tree):
        return ""
    links = " and ".join(f"{printable(path)} -> {printable(node.target)}" for path, node in lost)
    return f"where the artifact has {links}, Volant's kernel has a folder of its own"


def _agent_problem(
    format_: type[Format], tree: Tree, architecture: str, kernel: str
) -> Problem | None:
    """Say why the agent cannot start; None if it can, or if the artifact has an init instead."""
    if format_.needs_init and not has_built_in(tree):
        return None
    if not format_.needs_init and kernel != VOLANT:  # a kernel starts an init of the disk
        found = (problem(tree, path.decode(), architecture) for path in format_.init_paths)
        if not all(found):
            return None
    agent = paths.AGENT.decode()
    if tree.get(paths.AGENT, follow=True) is None:
        return Problem(
            f"it has no agent {agent}", "Add [agent] to fledge.toml, and build it again."
        )
    return problem(tree, agent, architecture)


def _check_room(config: Config, assembly: Assembly) -> None:
    """Raise `ConfigError` if the agent, which copies itself to a disk at boot, has no room."""
    agent = assembly.tree.get(paths.AGENT, follow=True)
    free = config.format.free_space(0)
    if not isinstance(agent, File) or free is None:
        return
    needed = content_size(agent.content) + AGENT_ROOM
    if free < needed:
        raise ConfigError(
            f"{config.path}: [filesystem] size_buffer_mb leaves {free >> 20} MiB free, but the"
            f" agent copies itself to the disk when it boots and needs {-(-needed >> 20)} MiB",
            f"Set size_buffer_mb to {-(-needed >> 20)} or more, or leave it out.",
        )
