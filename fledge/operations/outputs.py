"""Keeps a build from overwriting its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fledge.errors import ConfigError
from fledge.host.files import check_output
from fledge.project import lock
from fledge.project.config import Config


def check_outputs(config: Config, outputs: Sequence[Path]) -> None:
    """Raise `FledgeError` if an output cannot be written or would overwrite an input.

    An output in a mapped folder is refused too, because the next build would include it.
    """
    for output in outputs:
        check_output(output)
    check_inputs(config, outputs)


def check_inputs(config: Config, outputs: Sequence[Path]) -> None:
    """Raise `ConfigError` if an output is an input, or in a folder that is one."""
    outputs_by_identity = {
        _identity(path): output
        for output in reversed(outputs)
        for path in (output.resolve(), *output.resolve().parents)
        if path.exists()
    }
    files = [file for source in config.sources for file in source.local_files()]
    for file in (config.path, lock.path_beside(config.path), *files):
        output_in_it = outputs_by_identity.get(_identity(file)) if file.exists() else None
        if output_in_it is None:
            continue
        if file.is_dir():
            raise ConfigError(
                f"{output_in_it} is in {file}, which is an input of this build, so the next build"
                " would include it",
                "Choose another folder with -o FILE.",
            )
        raise ConfigError(
            f"{output_in_it} is an input of this build", "Choose another file with -o FILE."
        )


def _identity(path: Path) -> tuple[int, int]:
    """Return the device and inode number, which are equal for all names of a file."""
    status = path.stat()
    return status.st_dev, status.st_ino
