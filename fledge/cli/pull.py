"""The command ``fledge pull``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fledge.cli.options import (
    EXIT_CODES,
    Command,
    OfflineOption,
    PlatformOption,
    VerboseOption,
    new_app,
)
from fledge.cli.policies import (
    BuilderOption,
    KeysOption,
    PolicyOption,
    SourcesOption,
    ThresholdOption,
    read_policy,
)
from fledge.cli.reporters import reported
from fledge.cli.units import path_text
from fledge.operations.pull import pull
from fledge.session import Session

app = new_app()


@app.command(cls=Command, epilog=EXIT_CODES)
def run(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REFERENCE",
            help="What to pull: HOST/NAME:TAG or HOST/NAME@sha256:HEX.",
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
    with reported(verbose) as reporter:
        session = Session.default(reporter=reporter, offline=offline)
        needed = read_policy(keys, threshold, builder, sources, policy)
        pulled = pull(reference, output, platform=platform, policy=needed, session=session)
        if as_json:
            entries = [
                {
                    "path": str(each.path),
                    "reference": each.reference,
                    "sha256": each.digest.hex,
                    "size": each.size,
                    "provenance": each.provenance,
                    "manifest": each.plugin_manifest,
                    "signatures": each.signatures,
                }
                for each in pulled
            ]
            print(json.dumps(entries, indent=2))
        else:
            for each in pulled:
                print(path_text(each.path))
