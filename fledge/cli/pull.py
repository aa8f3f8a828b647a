"""The command ``fledge pull``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fledge.cli import runs
from fledge.cli.options import (
    EXIT_CODES,
    Command,
    OfflineOption,
    PlatformOption,
    VerboseOption,
    complete_image,
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
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REFERENCE",
            help="What to pull: HOST/NAME:TAG or HOST/NAME@sha256:HEX.",
            autocompletion=complete_image,
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="The folder to write to."),
    ] = Path(),
    platform: PlatformOption = None,
    keys: KeysOption = None,
    threshold: ThresholdOption = None,
    builder: BuilderOption = None,
    sources: SourcesOption = None,
    policy: PolicyOption = None,
    offline: OfflineOption = False,
    verbose: VerboseOption = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON array instead of the paths.")
    ] = False,
) -> None:
    """Pull artifacts from a registry.

    The plugin manifest and the provenance are put beside an artifact. Nothing gets its name before
    it is verified. What the cache has is not fetched again. With --key or --policy, the signatures
    of the provenance are verified first.
    """
    runs.pull.run(
        reference,
        output,
        platform,
        keys,
        threshold,
        builder,
        sources,
        policy,
        offline,
        verbose,
        as_json,
    )
