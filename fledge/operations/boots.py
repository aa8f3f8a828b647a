"""Checks that an artifact can boot, as far as that can be seen without booting it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from fledge.errors import ConfigError
from fledge.machine import shim
from fledge.machine.kconfig import State
from fledge.operations.kernel import VOLANT, target, target_kernel
from fledge.project.config import Config
from fledge.sources import paths
from fledge.sources.init import has_built_in
from fledge.sources.source import Assembly
from fledge.tree import Directory, File, Node, Symlink, Tree, programs
from fledge.tree.content import content_size
from fledge.tree.names import printable
from fledge.tree.programs import Context, Problem

AGENT_SIZE = 7 << 20
"""Bytes to reserve for the agent in Volant's kernel, which has about 6 MB. It copies itself to the
disk, whatever agent is there."""

AGENT_COPY = b"/usr/local/bin/kestrel"
"""Where the agent copies itself to on a disk."""

AGENT_ROOM = 256 << 10
"""Bytes that the agent needs on a disk beside its own size, for the folders that it makes."""


def check(config: Config, assembly: Assembly) -> None:
    """Raise `ConfigError` if the artifact needs an init and has none that Linux can run, or if it
    has no room for the agent.

    What keeps another program of the project from running is a note.
    """
    if config.format.needs_init:
        _check_init(config, assembly)
    if not config.format.in_memory and isinstance(_agent(assembly.tree), File):
        _check_agent_folder(config, assembly.tree)
        _check_room(config, assembly.tree)
    context = Context(assembly.architecture, {"PATH": programs.DEFAULT_PATH})
    for source in config.sources:
        for path in source.programs():
            command = [path.decode("utf-8", "surrogateescape")]
            if why := next(problems(config, assembly.tree, command, context), None):
                can = "cannot" if why.is_certain else "may not"
                assembly.session.reporter.note(f"the {source.role} {can} run: {why.text}")


def problems(
    config: Config, tree: Tree, command: Sequence[str], context: Context
) -> Iterator[Problem]:
    """Yield what keeps a command from running on the kernel that is to boot the artifact.

    Raises `ConfigError` if there is no such kernel.
    """
    for each in programs.problems(tree, command, context):
        if not each.option:
            yield each
            continue
        kernel = target_kernel(config)
        is_other = kernel.architecture not in (None, context.architecture)
        if not is_other and kernel.state(each.option) is State.MISSING:
            lacks = f"{each.text}: the kernel {target(config)} has no CONFIG_{each.option}"
            yield replace(each, text=lacks)


def _check_init(config: Config, assembly: Assembly) -> None:
    """Raise `ConfigError` if the artifact has no init, or none that Linux can run."""
    tree, candidates = assembly.tree, config.format.init_paths
    nodes = {path: tree.get(path, follow=True) for path in candidates}
    found = [path for path, node in nodes.items() if isinstance(node, File) and node.mode & 0o111]
    if not found:
        names = " or ".join(path.decode() for path in candidates)
        raise ConfigError(
            f"{config.path}: the artifact would have no executable {names} and would not boot",
            "Map an executable to /init, or leave out [init] to get the built-in one.",
        )
    init = found[0].decode()
    for why in problems(config, tree, [init], Context(assembly.architecture)):
        if why.is_certain:
            raise ConfigError(f"{config.path}: the artifact would not boot: {why.text}", why.advice)
        assembly.session.reporter.note(f"the init may not run: {why.text}")
    if target(config) == VOLANT:
        _check_over_baked(config, assembly, init)


def _check_over_baked(config: Config, assembly: Assembly, init: str) -> None:
    """Raise `ConfigError` if an init cannot start once Volant's kernel has unpacked the artifact
    over its own archive. The links that the init has to put back are a note.
    """
    seen, lost = shim.over_baked(assembly.tree)
    if not lost or has_built_in(assembly.tree):
        return
    links = " and ".join(f"{printable(path)} -> {printable(node.target)}" for path, node in lost)
    where = f"where the artifact has {links}, Volant's kernel has a folder of its own"
    found = problems(config, seen, [init], Context(assembly.architecture))
    if why := next((each for each in found if each.is_certain), None):
        raise ConfigError(
            f"{config.path}: the artifact would not boot on Volant: {why.text}: {where}",
            "Use paths without these links for the init and what it needs, such as #!/usr/bin/sh,"
            " or name another kernel in [target].",
        )
    assembly.session.reporter.note(f"{where}: the init has to put the link back")


def _agent(tree: Tree) -> Node | None:
    return tree.get(paths.AGENT, follow=True)


def _check_agent_folder(config: Config, tree: Tree) -> None:
    """Raise `ConfigError` if the agent cannot copy itself to the disk.

    It does so before the disk is the root, so that symlinks can lead out of the disk.
    """
    outside, mount_point = Tree(tree.mtime_ns), b"/mnt/volant-root"
    outside.add(b"/mnt", Directory(mode=0o755, children={b"volant-root": tree.root}))
    for path in (b"/usr", b"/usr/local", b"/usr/local/bin"):
        node = tree.get(path)
        if node is None:
            return  # the agent makes it
        reached = outside.get(mount_point + path, follow=True)
        if isinstance(reached, Directory) and reached is tree.get(path, follow=True):
            continue
        shown = printable(path)
        if isinstance(node, Symlink):
            target = printable(node.target)
            raise ConfigError(
                f"{config.path}: the artifact would not boot: {shown} is a symlink to {target},"
                " which the agent follows while the disk is not the root yet: it finds no folder"
                f" there to copy itself to, as {printable(AGENT_COPY)}",
                f"Make {shown} a folder, or a relative symlink to a folder of the disk.",
            )
        raise ConfigError(
            f"{config.path}: the artifact would not boot: {shown} is not a folder, and the agent"
            f" copies itself to {printable(AGENT_COPY)}",
            f"Make {shown} a folder.",
        )


def _check_room(config: Config, tree: Tree) -> None:
    """Raise `ConfigError` if the agent, which copies itself to a disk at boot, has no room."""
    agent, free = _agent(tree), config.format.free_space(0)
    if not isinstance(agent, File) or free is None:
        return
    needed = max(content_size(agent.content), AGENT_SIZE) + AGENT_ROOM
    if free < needed:
        raise ConfigError(
            f"{config.path}: [filesystem] size_buffer_mb leaves {free >> 20} MiB free, but the"
            f" agent copies itself to the disk when it boots and needs {-(-needed >> 20)} MiB",
            f"Set size_buffer_mb to {-(-needed >> 20)} or more, or leave it out.",
        )
