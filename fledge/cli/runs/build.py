"""Runs the command ``fledge build``."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import typer

from fledge.cli.artifacts import as_object, as_text, beside_as_object
from fledge.cli.lines import LineReporter
from fledge.cli.policies import read_policy
from fledge.cli.projects import find, is_several
from fledge.cli.reporters import reported
from fledge.cli.units import path_text
from fledge.host.signals import written
from fledge.operations import seal
from fledge.operations.arguments import as_config
from fledge.operations.build import Artifact, build, default_output
from fledge.operations.plan import BuildPlan, plan
from fledge.operations.shared_cache import Sharing
from fledge.project.config import Config
from fledge.project.manifest import path_beside
from fledge.report import counted, human_size
from fledge.session import Session
from fledge.tree.names import printable


def run(
    projects: list[str] | None,
    config: list[Path] | None,
    output: str | None,
    platform: list[str] | None,
    manifest: Path | None,
    changes: list[str] | None,
    base_url: str | None,
    verbose: bool,
    quiet: bool,
    offline: bool,
    locked: bool,
    cache_to: str | None,
    sign_with: str | None,
    keys: list[Path] | None,
    changed: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build the artifact and print its path."""
    if verbose and quiet:
        raise typer.BadParameter("--quiet and --verbose exclude each other")
    if output == "":
        raise typer.BadParameter("--output is empty; name a file")
    if output == "-":
        raise typer.BadParameter(
            "an artifact cannot be written to standard output; name a file (./- is one, too)"
        )
    if output and output.endswith("/") and not Path(output).is_dir():
        raise typer.BadParameter("--output ends in a slash, as only folders do; name a file")
    several = is_several(projects, config) or len(platform or ()) > 1
    if manifest and several:
        raise typer.BadParameter(
            "--manifest has the settings of one plugin; keep a manifest.toml beside each"
        )
    if dry_run and several:
        several = len(platform or ()) > 1 or len(find(projects, config)) > 1
    if dry_run and (several or changed or cache_to):
        raise typer.BadParameter(
            "--dry-run is for one artifact; leave out the other projects, --changed and --cache-to"
        )
    if several or changed:
        # Imported late, because a single build does not need it.
        from fledge.cli.builds import show  # noqa: PLC0415
        from fledge.operations.builds import build_all  # noqa: PLC0415

        with reported(verbose, quiet) as reporter:
            session = Session.default(reporter=None if quiet else reporter, offline=offline)
            configs = find(projects, config)
            results = build_all(
                [as_config(each, manifest, changes or ()) for each in configs]
                if manifest or changes
                else configs,
                output or (None if several else "."),
                platforms=platform or (),
                locked=locked,
                only_changed=changed,
                base_url=base_url,
                sharing=Sharing(cache_to, sign_with, read_policy(keys)),
                session=session,
            )
            reporter.close()
            code = show(results, None if quiet else reporter, as_json, several)
        raise typer.Exit(code)
    with reported(verbose, quiet) as reporter:
        chosen = as_config(find(projects, config)[0], manifest, changes or ())
        path: str | Path | None = output
        if _is_elsewhere(projects, config, chosen):
            path = _output(chosen, output)
        session = Session.default(reporter=None if quiet else reporter, offline=offline)
        only = platform[0] if platform else None
        if dry_run:
            _show_plan(plan(chosen, path, platform=only, locked=locked, session=session), as_json)
            return
        artifact = build(
            chosen,
            path,
            platform=only,
            locked=locked,
            base_url=base_url,
            sharing=Sharing(cache_to, sign_with, read_policy(keys)),
            session=session,
        )
        with written(artifact.path):
            if verbose:
                _print_inputs(reporter, artifact)
                _print_parameters(reporter, artifact)
            if not quiet:
                # On a terminal the path that is printed below is in sight already.
                _print_summary(reporter, artifact, with_path=as_json or not sys.stdout.isatty())
            print(as_text(as_object(artifact)) if as_json else path_text(artifact.path))


def _show_plan(found: BuildPlan, as_json: bool) -> None:
    """Print what a build would fetch and write."""
    if as_json:
        outputs = [str(each) for each in found.outputs]
        needs = [msgspec.to_builtins(each) for each in found.needs]
        print(as_text({"fetch": needs, "write": outputs}))
        return
    for need in found.needs:
        size = "size unknown" if need.size is None else human_size(need.size)
        facts = ", ".join(filter(None, [need.note, size]))
        print(printable(f"fetch  {need.uri}  ({need.role}: {facts})"))
    for path in found.outputs:
        print(f"write  {path_text(path)}")


def _is_elsewhere(projects: list[str] | None, given: list[Path] | None, config: Config) -> bool:
    """Return whether an artifact goes beside its fledge.toml, and not into the working directory:
    that of an argument, and that of a fledge.toml that was found in a parent folder.
    """
    return bool(projects) or (not given and config.path.parent != Path())


def _output(config: Config, given: str | None) -> Path:
    """Return the path of the artifact of a project that is an argument: by default beside it."""
    path = Path(given) if given else config.path.parent
    return path / default_output(config) if path.is_dir() else path


def _print_inputs(reporter: LineReporter, artifact: Artifact) -> None:
    """Print the inputs in the format of sha256sum."""
    for item in artifact.inputs:
        reporter.line(f"    {item.digest.hex}  {item.uri}")


def _print_parameters(reporter: LineReporter, artifact: Artifact) -> None:
    """Print what sets a sealed disk up, on the command line of a kernel or of systemd."""
    if found := seal.find(artifact.path) if artifact.root_hash else None:
        reporter.line(f"    {seal.kernel_parameters(found)}")
        reporter.line(f"    {seal.systemd_parameters(found)}")


def _print_summary(reporter: LineReporter, artifact: Artifact, *, with_path: bool) -> None:
    reporter.line(
        (f"  {artifact.path}" if with_path else "", "bold"),
        f"  {human_size(artifact.size)}, {_content(artifact)}, in {reporter.seconds():.1f} s",
    )
    reporter.line((f"  sha256 {artifact.digest.hex}", "dim"))
    if artifact.root_hash:
        reporter.line((f"  root hash {artifact.root_hash.hex}", "dim"))
    for what, path in beside_as_object(artifact.beside).items():
        if path:
            reporter.line((f"  {what.replace('_', ' ')} {path_text(Path(path))}", "dim"))
    if artifact.manifest:
        reporter.line((f"  manifest {path_text(path_beside(artifact.path))}", "dim"))


def _content(artifact: Artifact) -> str:
    if artifact.entries is None or artifact.content_size is None:
        return "built before"
    return f"{counted(artifact.entries, 'entry')} of {human_size(artifact.content_size)}"
