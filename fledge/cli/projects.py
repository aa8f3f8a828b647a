"""Finds the projects that a command is given, and says what became of several."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import typer

from fledge.cli.messages import print_error
from fledge.cli.options import DEFAULT_CONFIG
from fledge.errors import ConfigError, FledgeError
from fledge.host.settings import Settings
from fledge.project.config import is_dockerfile
from fledge.tree.names import printable


def is_several(arguments: Sequence[str] | None, configs: Sequence[Path] | None) -> bool:
    """Return whether projects are given as several: by folders, patterns, or more than one file.

    What a pattern matches, here or in a shell, does not change the form of the output. A Dockerfile
    that is named alone is one project.
    """
    if arguments and len(arguments) == 1 and not configs:
        path = Path(arguments[0])
        return _is_pattern(arguments[0]) or path.is_dir() or not is_dockerfile(path)
    return bool(arguments) or len(configs or ()) > 1


def find(arguments: Sequence[str] | None, configs: Sequence[Path] | None) -> list[Path]:
    """Return the configs that a command line names, each once. By default that of `locate`.

    An argument is a folder with a fledge.toml, the path of such a file or of a Dockerfile, or a
    pattern that a shell has left as it is. Raises `ConfigError`.
    """
    found = {config.resolve(): config for config in configs or ()}
    for argument in arguments or ():
        for config in _expand(argument):
            found.setdefault(config.resolve(), config)
    return list(found.values()) or [locate(None)]


def locate(given: Path | None) -> Path:
    """Return the config to use: the given one; else fledge.toml, here or in a parent folder.

    Says which one it is if it is in a parent folder. It may not exist.
    """
    if given is not None:
        return given
    found = None if DEFAULT_CONFIG.exists() else _find_above(Path.cwd())
    if found is None:
        return DEFAULT_CONFIG
    typer.echo(f"  using {printable(str(found))}", err=True)
    return found


def _find_above(start: Path) -> Path | None:
    """Return the nearest fledge.toml above ``start``, relative to that; None: there is none.

    As in git, the search ends at the root of a repository, at the home folder, and where another
    filesystem begins. A file of another user does not count: a config can name programs to run.
    """
    home, device = Settings.from_environment().home, start.stat().st_dev
    folder = start
    while folder not in (folder.parent, home) and not (folder / ".git").exists():
        folder = folder.parent
        if folder.stat().st_dev != device:
            return None
        config = folder / DEFAULT_CONFIG
        if config.is_file():
            owner = config.stat().st_uid
            # relative_to cannot go up.
            relative = Path(os.path.relpath(config, start))
            return relative if owner in (os.getuid(), 0) else None
    return None


def is_config(argument: str) -> bool:
    """Return whether an argument names projects, and not an artifact."""
    path = Path(argument)
    is_file = path.suffix == ".toml" or is_dockerfile(path)
    return is_file or glob.has_magic(argument) or path.is_dir()


def _is_pattern(argument: str) -> bool:
    return glob.has_magic(argument) and not Path(argument).exists()


def _expand(argument: str) -> Iterator[Path]:
    path = Path(argument)
    if _is_pattern(argument):
        found = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207 -- absolute ones, too
        matches = map(Path, found)
        candidates = [_config(each) for each in matches]
        configs = [each for each in candidates if each.suffix == ".toml" and each.is_file()]
        if not configs:
            raise ConfigError(f"no folder with a fledge.toml matches {argument}")
        yield from configs
        return
    config = _config(path)
    if config.suffix != ".toml" and not is_dockerfile(config):
        raise ConfigError(
            f"{path} is neither a folder nor a .toml file nor a Dockerfile",
            "Name a folder with a fledge.toml, or a file of that suffix. For a Dockerfile of"
            f' another name, write [source] dockerfile = "{path.name}" in a fledge.toml, or call'
            f" it {path.name}.Dockerfile.",
        )
    yield config


def _config(path: Path) -> Path:
    return path / DEFAULT_CONFIG if path.is_dir() else path


def print_failures(results: Sequence[tuple[str, FledgeError | None]]) -> int:
    """Print why some of several projects failed, in (name, error). None: it did not.

    Returns the exit code, which is that of the first one that failed.
    """
    failures = [(name, error) for name, error in results if error]
    for name, error in failures:
        hint = [error.hint] if error.hint else []
        print_error(*map(printable, [f"{name}: {error.message}", *error.details, *hint]))
    if not failures:
        return 0
    names = ", ".join(name for name, _ in failures)
    print_error(f"{len(failures)} of {len(results)} failed: {printable(names)}")
    return failures[0][1].exit_code
