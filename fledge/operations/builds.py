"""Builds the artifacts of many projects, or of many platforms, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec
from msgspec.structs import replace

from fledge.errors import ConfigError, FledgeError
from fledge.host.files import PathLike
from fledge.oci.manifest import Platform
from fledge.operations import many
from fledge.operations.arguments import (
    ConfigLike,
    PlatformLike,
    as_config,
    as_platform,
    as_session,
    start_assembly,
)
from fledge.operations.build import Artifact, default_output, outputs_of, write_artifact
from fledge.operations.changes import up_to_date
from fledge.operations.lock import Lookups, fill
from fledge.operations.many import Outcome, Task, side_by_side
from fledge.operations.outputs import check_outputs
from fledge.operations.shared_cache import Sharing
from fledge.project import lock, provenance
from fledge.project.config import Config
from fledge.project.lock import Lock, PinFinder
from fledge.project.provenance import Provenance
from fledge.report import Reporter, human_size
from fledge.session import Session


class BuildResult(msgspec.Struct, frozen=True):
    """What became of one of several builds."""

    name: str
    """The folder of the project, or its config if that has another name than fledge.toml; with
    several platforms, also the platform."""
    path: Path | None
    """The artifact; None if the config could not be read, so that it has no name."""
    artifact: Artifact | None = None
    """The artifact, if it was built."""
    unchanged: Provenance | None = None
    """The provenance of the artifact, if it was up to date."""
    error: FledgeError | None = None
    """Why there is no artifact."""


class _Plan(msgspec.Struct, frozen=True):
    """One artifact to build."""

    name: str
    config: Config
    platform: Platform | None
    output: Path
    pins: PinFinder


def build_all(
    configs: Sequence[ConfigLike],
    output: PathLike | None = None,
    *,
    platforms: Sequence[PlatformLike] = (),
    locked: bool = False,
    only_changed: bool = False,
    base_url: str | None = None,
    sharing: Sharing | None = None,
    session: Session | None = None,
) -> list[BuildResult]:
    """Build an artifact for each config and platform, and return the results in that order.

    An artifact goes beside its fledge.toml, or into the folder ``output``, which is a file if there
    is only one artifact. If there are several platforms, its name has the platform. Each build is
    as by `build`; one that fails leaves the others. What no lock pins is looked up first, once for
    all. With ``only_changed``, an artifact that is up to date, as the provenance beside it says, is
    not built. ``base_url`` is for projects with a plugin manifest, ``sharing`` as for `build`.

    The builds run in forked processes, one for each core at a time: call it while the program has
    no other threads. Raises `ConfigError` before anything is built if two
    builds would write the same file, or one would write what another reads.
    """
    session = as_session(session)
    chosen: list[Platform | None] = [None]
    if platforms:
        chosen = list(dict.fromkeys(map(as_platform, platforms)))
    results: list[BuildResult | None] = []
    plans: dict[int, _Plan] = {}
    is_alone = len(configs) * len(chosen) == 1
    for given in configs:
        for platform in chosen:
            name = many.project_name(given, platform if len(chosen) > 1 else None)
            try:
                config = as_config(given)
                path = _output(config, output, platform if len(chosen) > 1 else None, is_alone)
                pins = lock.load_pins(config, session.reporter, strict=locked)
                plans[len(results)] = _Plan(name, config, platform, path, pins)
                results.append(None)
            except FledgeError as error:
                results.append(BuildResult(name, None, error=error))
    _check_apart(list(plans.values()))
    filled, failed = _look_up(plans, session)
    for number, failure in failed.items():
        results[number] = BuildResult(plans[number].name, plans[number].output, error=failure)
    tasks = [
        Task(
            plan.name,
            partial(_build, plan, only_changed, base_url, sharing or Sharing()),
            base=(plan.config.image, plan.platform),
            describe=_description,
        )
        for plan in filled.values()
    ]
    provenance.versions()  # once, and not in each process
    for number, outcome in zip(filled, side_by_side(tasks, session), strict=True):
        results[number] = _result(plans[number], outcome)
    return [result for result in results if result]


def _output(
    config: Config, output: PathLike | None, platform: Platform | None, is_alone: bool
) -> Path:
    """Return the path of an artifact. ``platform`` is to be in its name; None: it need not be.

    Raises `ConfigError` if ``output`` is no folder, and there are several artifacts.
    """
    name = default_output(config, str(platform).removeprefix("linux/") if platform else "")
    if output is None:
        return config.path.parent / name
    if Path(output).is_dir():
        return Path(output) / name
    if is_alone:
        return Path(output)
    raise ConfigError(
        f"{output} is not a folder, and there are several artifacts",
        "Create it, or choose another with -o DIR.",
    )


def _check_apart(plans: Sequence[_Plan]) -> None:
    """Raise `ConfigError` if a build would write what another one writes or reads."""
    writers: dict[Path, _Plan] = {}
    folders: dict[Path, list[_Plan]] = {}
    for plan in plans:
        for output in outputs_of(plan.config, plan.output):
            path = output.parent.resolve() / output.name
            other = writers.setdefault(path, plan)
            if other is not plan:
                raise ConfigError(
                    f"{other.name} and {plan.name} would both be written to {output}",
                    "Build one of them by itself, with -o FILE, or keep them in different folders.",
                )
    for path, plan in writers.items():
        for each in (path, *path.parents):
            folders.setdefault(each, []).append(plan)
    for plan in plans:
        for file in (each for source in plan.config.sources for each in source.local_files()):
            for writer in folders.get(file.resolve(), ()):
                if writer is plan:
                    continue
                raise ConfigError(
                    f"{writer.name} would be written to {file}, which is an input of {plan.name}",
                    "Build them one after the other, or write to another folder with -o DIR.",
                )


def _look_up(
    plans: Mapping[int, _Plan], session: Session
) -> tuple[dict[int, _Plan], dict[int, FledgeError]]:
    """Look up what locks do not pin, once for all. Returns plans with pins, and failures."""
    missing = {number: each for number, each in plans.items() if not each.pins.has_all_names()}
    if not missing:
        return dict(plans), {}

    def look_up(session: Session) -> dict[int, Lock | FledgeError | None]:
        lookups = Lookups()
        return {number: _fill(plan, lookups, session) for number, plan in missing.items()}

    # In a process of its own, because requests start threads, which must not run at a fork.
    [outcome] = side_by_side([Task("names", look_up)], session, 1)
    found = outcome.value or dict.fromkeys(missing, outcome.error)
    failed = {number: each for number, each in found.items() if isinstance(each, FledgeError)}
    filled = {
        number: replace(plan, pins=replace(plan.pins, lock=found.get(number, plan.pins.lock)))
        for number, plan in plans.items()
        if number not in failed
    }
    return filled, failed


def _fill(plan: _Plan, lookups: Lookups, session: Session) -> Lock | FledgeError | None:
    start = start_assembly(plan.config, plan.platform, session)
    try:
        return fill(replace(plan.pins, reporter=session.reporter), start, lookups).lock
    except FledgeError as error:
        return error


def _build(
    plan: _Plan, only_changed: bool, base_url: str | None, sharing: Sharing, session: Session
) -> Artifact | Provenance:
    """Build an artifact, or return the provenance of one that is up to date."""
    config, pins = plan.config, replace(plan.pins, reporter=session.reporter)
    check_outputs(config, outputs_of(config, plan.output))
    if only_changed:
        with session.reporter.step("compare") as step:
            quiet = replace(session, reporter=Reporter())
            start = start_assembly(config, plan.platform, quiet)
            found = up_to_date(plan.output, pins, start, base_url)
            step.detail = "up to date" if found else "changed"
        if found:
            return found
    start = start_assembly(config, plan.platform, session)
    return write_artifact(config, plan.output, pins, start, base_url, sharing)


def _description(result: Artifact | Provenance) -> str:
    if isinstance(result, Provenance):
        return "up to date"
    return f"{result.path.name}, {human_size(result.size)}"


def _result(plan: _Plan, outcome: Outcome[Artifact | Provenance]) -> BuildResult:
    value = outcome.value
    return BuildResult(
        plan.name,
        plan.output,
        value if isinstance(value, Artifact) else None,
        value if isinstance(value, Provenance) else None,
        outcome.error,
    )
