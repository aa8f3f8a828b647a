"""Runs the command ``fledge verify``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fledge.cli import views
from fledge.cli.policies import read_policy
from fledge.cli.projects import locate
from fledge.cli.reporters import reported
from fledge.errors import ConfigError
from fledge.operations.arguments import as_config
from fledge.operations.seal import SealCheck, verify_seal
from fledge.operations.verify import Verification, verify
from fledge.session import Session
from fledge.tree.names import printable

if TYPE_CHECKING:
    from fledge.project.policy import Policy


def run(
    artifact: Path,
    config: Path | None,
    changes: list[str] | None,
    keys: list[Path] | None,
    threshold: int | None,
    builder: str | None,
    sources: list[str] | None,
    policy: Path | None,
    no_rebuild: bool,
    root_hash: str | None,
    verbose: bool,
    offline: bool,
) -> None:
    """Check signatures, build it again and compare."""
    if root_hash is not None and config is not None:
        raise typer.BadParameter("--root-hash builds nothing, so it excludes --config")
    with reported(verbose) as reporter:
        session = Session.default(reporter=reporter, offline=offline)
        trust = read_policy(keys, threshold, builder, sources, policy)
        if root_hash is not None:
            if trust:
                _check_signatures(artifact, trust, session)
            found = verify_seal(artifact, root_hash, session=session)
            is_right, lines = found.is_intact, _seal_lines(artifact, found)
        elif no_rebuild:
            _check_signatures(artifact, trust, session)
            return
        else:
            path = locate(config)
            chosen = as_config(path, None, changes) if changes else path
            result = verify(artifact, chosen, policy=trust, session=session)
            limit = None if verbose else views.MAX_DIFFERENCE
            is_right, lines = result.equal, _lines(artifact, result, limit)
        for line in lines:
            print(printable(line))
    if not is_right:
        raise typer.Exit(1)


def _seal_lines(artifact: Path, found: SealCheck) -> Iterator[str]:
    """Yield whether a sealed disk is intact, and what is damaged."""
    if found.is_intact:
        yield f"intact: all of {artifact} is what the root hash says"
        return
    yield f"damaged: {artifact}"
    yield from (f"  {line}" for line in views.damage_lines(found))


def _check_signatures(artifact: Path, policy: Policy | None, session: Session) -> None:
    if policy is None:
        raise ConfigError(
            "with --no-rebuild there is nothing to check",
            "Name the key that must have signed the artifact with --key FILE.",
        )
    # Imported late because cryptography is slow to load, and only signatures need it.
    from fledge.operations.trust import verify_signatures  # noqa: PLC0415

    trusted = verify_signatures(artifact, policy, session=session)
    print(printable(_signed_line(artifact, [key.name for key in trusted.keys])))


def _signed_line(artifact: Path, signers: Sequence[str]) -> str:
    return f"signed: {artifact} and its provenance, by {', '.join(signers)}"


def _lines(artifact: Path, result: Verification, max_difference: int | None) -> Iterator[str]:
    """Yield the result, the differences from the record, and those between the two files."""
    if result.signers:
        yield _signed_line(artifact, result.signers)
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
