"""Says what a build would fetch and write, and does neither (``--dry-run``)."""

from __future__ import annotations

from pathlib import Path

import msgspec

from fledge.host.files import PathLike
from fledge.operations.arguments import (
    ConfigLike,
    PlatformLike,
    as_config,
    as_session,
    start_assembly,
)
from fledge.operations.build import default_output, outputs_of
from fledge.operations.outputs import check_outputs
from fledge.project import lock
from fledge.session import Session
from fledge.sources.source import Need


class BuildPlan(msgspec.Struct, frozen=True):
    """What a build would do."""

    needs: tuple[Need, ...]
    """What it would fetch, in the order of the sources."""
    outputs: tuple[Path, ...]
    """The files that it would write, the artifact first."""


def plan(
    config: ConfigLike = "fledge.toml",
    output: PathLike | None = None,
    *,
    platform: PlatformLike | None = None,
    locked: bool = False,
    session: Session | None = None,
) -> BuildPlan:
    """Say what `build` with the same arguments would fetch and write.

    Reads manifests of images and the listing of a release, which tell sizes; if the session is
    offline, only those in the cache. An artifact in a build cache is not looked for. Raises the
    errors of `build` that do not need the content of an input.
    """
    config, session = as_config(config), as_session(session)
    path = Path(output) if output else default_output(config)
    outputs = outputs_of(config, path)
    check_outputs(config, outputs)
    config.format.check(session.settings)
    pins = lock.load_pins(config, session.reporter, strict=locked)
    start = start_assembly(config, platform, session)
    needs: list[Need] = []
    for source in config.sources:
        with session.reporter.step(source.role) as step:
            found = source.needs(start, pins.find(source, start))
            step.detail = "to be fetched" if found else "here"
        needs += found
    return BuildPlan(tuple(needs), tuple(outputs))
