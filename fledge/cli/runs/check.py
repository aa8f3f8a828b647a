"""Runs the command ``fledge check``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import typer

from fledge.cli import views
from fledge.cli.lines import LineReporter
from fledge.cli.projects import find, is_config, is_several, print_failures
from fledge.cli.reporters import reported
from fledge.cli.units import path_text
from fledge.machine.check import KernelCheck
from fledge.operations.arguments import as_config
from fledge.operations.check import check_target
from fledge.operations.kernel import check_kernel
from fledge.session import Session
from fledge.tree.names import printable


def run(
    projects: list[str] | None,
    config: list[Path] | None,
    kernel: str | None,
    platform: str | None,
    manifest: Path | None,
    changes: list[str] | None,
    verbose: bool,
    quiet: bool,
) -> None:
    """Validate the configuration, and check a kernel against it."""
    if verbose and quiet:
        raise typer.BadParameter("--quiet and --verbose exclude each other")
    artifact = None
    if projects and len(projects) == 1 and not is_config(projects[0]):
        artifact = Path(projects[0])
        if kernel is None:
            raise typer.BadParameter("an artifact needs a kernel to check; name it with --kernel")
    with reported(verbose, quiet) as reporter:
        session = Session.default(reporter=None if quiet else reporter, offline=True)
        if artifact and kernel is not None:
            code = _print_kernel(check_kernel(kernel, artifact), quiet)
        elif is_several(projects, config):
            check_one = partial(_check_one, kernel, platform, changes or ())
            code = _check_all(find(projects, config), check_one, session, reporter, quiet)
        else:
            [path] = find(projects, config)
            chosen = as_config(path, manifest, changes or ())
            found = check_target(chosen, kernel, platform=platform, session=session)
            code = _print(path, found, quiet)
    if code:
        raise typer.Exit(code)


_Checked = tuple[Path, KernelCheck | None]
"""A config and what was found of its kernel; None: it names none."""


def _check_one(
    kernel: str | None,
    platform: str | None,
    changes: Sequence[str],
    path: Path,
    session: Session,
) -> _Checked:
    config = as_config(path, None, changes)
    return path, check_target(config, kernel, platform=platform, session=session)


def _check_all(
    configs: Sequence[Path],
    check_one: Callable[[Path, Session], _Checked],
    session: Session,
    reporter: LineReporter,
    quiet: bool,
) -> int:
    # Imported late, because for one project nothing is forked.
    from fledge.operations.many import Task, project_name, side_by_side  # noqa: PLC0415

    tasks = [Task(project_name(each), partial(check_one, each)) for each in configs]
    outcomes = side_by_side(tasks, session)
    reporter.close()
    codes = []
    for outcome in outcomes:
        if outcome.value:
            codes.append(_print(*outcome.value, quiet))
    failed = print_failures([(each.name, each.error) for each in outcomes])
    return failed or max(codes, default=0)


def _print(config: Path, found: KernelCheck | None, quiet: bool) -> int:
    """Print that a config is valid, and what a kernel has and lacks. Returns the exit code."""
    if not quiet:
        print(f"{path_text(config)} is valid")
    return _print_kernel(found, quiet) if found else 0


def _print_kernel(found: KernelCheck, quiet: bool) -> int:
    """Print what a kernel has and lacks; if quiet, only if it does not boot the artifact.

    Returns the exit code.
    """
    if not (quiet and found.boots):
        for line in views.kernel_lines(found):
            print(printable(line))
    return 0 if found.boots else 1
