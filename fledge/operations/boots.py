"""Checks that an artifact can boot, as far as that can be seen without booting it."""

from __future__ import annotations

from fledge.errors import ConfigError
from fledge.project.config import Config
from fledge.sources.source import Assembly
from fledge.tree import File
from fledge.tree.names import printable
from fledge.tree.programs import problem


def check(config: Config, assembly: Assembly) -> None:
    """Raise `ConfigError` if the artifact needs an init and has none that Linux can run.

    What keeps another program of the project from running is a note.
    """
    format_, tree = config.format, assembly.tree
    if format_.needs_init:
        nodes = {path: tree.get(path, follow=True) for path in format_.init_paths}
        init = next(
            (path for path, node in nodes.items() if isinstance(node, File) and node.mode & 0o111),
            None,
        )
        if init is None:
            paths = " or ".join(path.decode() for path in format_.init_paths)
            raise ConfigError(
                f"{config.path}: the artifact would have no executable {paths} and would not boot",
                "Map an executable to /init, or leave out [init] to get the built-in one.",
            )
        if why := problem(tree, init.decode(), assembly.architecture):
            raise ConfigError(
                f"{config.path}: the artifact would not boot: {why}",
                "Add what is missing with [mappings], or use another init.",
            )
    for source in config.sources:
        for path in source.programs():
            if why := problem(tree, printable(path), assembly.architecture):
                assembly.session.reporter.note(f"the {source.role} cannot run: {why}")
