"""The command ``fledge verify``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer

from fledge.cli import views
from fledge.cli.options import (
    DEFAULT_CONFIG,
    EXIT_CODES,
    ArtifactArgument,
    Command,
    ConfigOption,
    OfflineOption,
    VerboseDifferenceOption,
    new_app,
)
from fledge.cli.reporters import reported
from fledge.operations.verify import Verification, verify
from fledge.session import Session
from fledge.tree.names import printable

app = new_app()


@app.command(cls=Command, epilog=EXIT_CODES)
def run(
    artifact: ArtifactArgument,
    config: ConfigOption = DEFAULT_CONFIG,
    verbose: VerboseDifferenceOption = False,
    offline: OfflineOption = False,
) -> None:
    """Build an artifact again and compare the two.

    Uses the inputs that the provenance of the artifact records. The exit code is 1 if the two
    artifacts differ.
    """
    with reported(verbose) as reporter:
        session = Session.default(reporter=reporter, offline=offline)
        result = verify(artifact, config, session=session)
        for line in _lines(artifact, result, None if verbose else views.MAX_DIFFERENCE):
            print(printable(line))
    if not result.equal:
        raise typer.Exit(1)


def _lines(artifact: Path, result: Verification, max_difference: int | None) -> Iterator[str]:
    """Yield the result, the differences from the record, and those between the two files."""
    if result.equal:
        yield f"equal: {artifact} matches its provenance and a new build"
    else:
        yield f"different: {artifact}"
        yield f"  sha256 of the file      {result.artifact.hex}"
        yield f"  sha256 in provenance    {result.recorded.hex}"
        rebuilt = result.rebuilt.hex if result.rebuilt else "cannot be built as recorded"
        yield f"  sha256 of a new build   {rebuilt}"
    for line in (*result.false_claims, *result.versions):
        yield f"  {line}"
    if result.difference:
        yield from views.difference_lines(result.difference, max_difference)
    elif result.rebuilt is None:
        yield f"  {result.problem}"
    elif result.problem:
        yield f"  the two cannot be compared: {result.problem}"
