"""Validates a fledge.toml and the files that it names."""

from __future__ import annotations

from fledge.host.files import PathLike
from fledge.operations.arguments import as_config
from fledge.project.config import Config


def check(config: PathLike = "fledge.toml") -> Config:
    """Read and validate a fledge.toml, without downloading or writing anything.

    Raises `InvalidConfig` with all problems, `ConfigError` if the file cannot be read.
    """
    return as_config(config)
