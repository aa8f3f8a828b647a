"""Checks that an artifact can boot, as far as that can be seen without booting it."""

from __future__ import annotations

from fledge.errors import ConfigError
from fledge.project.config import Config
from fledge.sources import paths
from fledge.sources.source import Assembly
from fledge.tree import File
from fledge.tree.content import content_size
from fledge.tree.names import printable
from fledge.tree.programs import problem

AGENT_ROOM = 256 << 10
"""Bytes that the agent needs on a disk beside its own size, for the folders that it makes."""


def check(config: Config, assembly: Assembly) -> None:
    """Raise `ConfigError` if the artifact needs an init and has none that Linux can run, or if it
    has no room for the agent.

    What keeps another program of the project from running is a note.
    """
    if config.format.needs_init:
        _check_init(config, assembly)
    _check_room(config, assembly)
    for source in config.sources:
        for path in source.programs():
            if why := problem(assembly.tree, printable(path), assembly.architecture):
                assembly.session.reporter.note(f"the {source.role} cannot run: {why}")


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
    if why := problem(tree, found[0].decode(), assembly.architecture):
        raise ConfigError(
            f"{config.path}: the artifact would not boot: {why}",
            "Add what is missing with [mappings], or use another init.",
        )


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
