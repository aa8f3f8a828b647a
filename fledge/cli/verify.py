"""The command ``fledge verify``."""

from __future__ import annotations

from typing import Annotated

import typer

from fledge.cli import runs
from fledge.cli.options import (
    EXIT_CODES,
    ArtifactArgument,
    Command,
    ConfigOption,
    OfflineOption,
    SetOption,
    VerboseDifferenceOption,
    new_app,
)
from fledge.cli.policies import (
    BuilderOption,
    KeysOption,
    PolicyOption,
    SourcesOption,
    ThresholdOption,
)

app = new_app()


@app.command(cls=Command, epilog=EXIT_CODES)
def run(
    artifact: ArtifactArgument,
    config: ConfigOption = None,
    changes: SetOption = None,
    keys: KeysOption = None,
    threshold: ThresholdOption = None,
    builder: BuilderOption = None,
    sources: SourcesOption = None,
    policy: PolicyOption = None,
    no_rebuild: Annotated[
        bool, typer.Option("--no-rebuild", help="Check only the signatures and what they say.")
    ] = False,
    root_hash: Annotated[
        str | None,
        typer.Option(
            metavar="HEX",
            help="Check that a sealed disk is what this root hash of dm-verity says, and the"
            " signatures if keys are given, without building it again.",
        ),
    ] = None,
    verbose: VerboseDifferenceOption = False,
    offline: OfflineOption = False,
) -> None:
    """Check signatures, build it again and compare.

    Uses the inputs that the provenance of the artifact records. The exit code is 1 if the two
    artifacts differ or a sealed disk is damaged, and 4 if the signatures are not those that are
    asked for.
    """
    runs.verify.run(
        artifact,
        config,
        changes,
        keys,
        threshold,
        builder,
        sources,
        policy,
        no_rebuild,
        root_hash,
        verbose,
        offline,
    )
