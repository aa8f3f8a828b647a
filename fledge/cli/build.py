"""The command ``fledge build``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fledge.cli import runs
from fledge.cli.options import (
    EXIT_CODES,
    BaseUrlOption,
    Command,
    ConfigsOption,
    ManifestOption,
    OfflineOption,
    PlatformsOption,
    ProjectsArgument,
    QuietOption,
    SetOption,
    new_app,
)
from fledge.project.foreign import DOCKERFILE_OPTIONS

app = new_app()


class BuildCommand(Command):
    """The command, with an answer to what it is asked for in the original fledge."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments."""
        for option in (each.partition("=")[0] for each in args):
            if option in DOCKERFILE_OPTIONS:
                ctx.fail(f"{option}: {DOCKERFILE_OPTIONS[option]}")
        return super().parse_args(ctx, args)


@app.command(cls=BuildCommand, epilog=EXIT_CODES)
def run(
    projects: ProjectsArgument = None,
    config: ConfigsOption = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE|DIR",
            help="Where to write the artifact. For several, a folder.",
            show_default="plugin.cpio or IMAGE with the suffix of its format, such as"
            " nginx.squashfs; of several, each beside its fledge.toml",
        ),
    ] = None,
    platform: PlatformsOption = None,
    manifest: ManifestOption = None,
    changes: SetOption = None,
    base_url: BaseUrlOption = None,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Show every input and where it came from."),
    ] = False,
    quiet: QuietOption = False,
    offline: OfflineOption = False,
    locked: Annotated[
        bool, typer.Option("--locked", help="Refuse inputs that fledge.lock does not pin.")
    ] = False,
    cache_to: Annotated[
        str | None,
        typer.Option(
            metavar="REPOSITORY",
            help="Keep the artifact in a registry, for others who build the same with --locked.",
        ),
    ] = None,
    sign_with: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="Sign the artifact: with the private key in FILE or env:NAME."
        ),
    ] = None,
    keys: Annotated[
        list[Path] | None,
        typer.Option(
            "--key",
            metavar="FILE",
            help="A public key that must have signed what comes from the build cache. Can be"
            " repeated.",
        ),
    ] = None,
    changed: Annotated[
        bool,
        typer.Option(
            "--changed", help="Build only what is not up to date, as its provenance says."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what would be downloaded and written, and write nothing."
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print a JSON object instead of the path, or a list of several."
        ),
    ] = False,
) -> None:
    """Build the artifact and print its path.

    With folders or files as arguments, or several of --config or --platform, builds all of them
    side by side.
    """
    runs.build.run(
        projects,
        config,
        output,
        platform,
        manifest,
        changes,
        base_url,
        verbose,
        quiet,
        offline,
        locked,
        cache_to,
        sign_with,
        keys,
        changed,
        dry_run,
        as_json,
    )
