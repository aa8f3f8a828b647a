"""Runs the command ``fledge pull``."""

from __future__ import annotations

import json
from pathlib import Path

from fledge.cli.policies import read_policy
from fledge.cli.reporters import reported
from fledge.cli.units import path_text
from fledge.operations.pull import pull
from fledge.session import Session


def run(
    reference: str,
    output: Path,
    platform: str | None,
    keys: list[Path] | None,
    threshold: int | None,
    builder: str | None,
    sources: list[str] | None,
    policy: Path | None,
    offline: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Pull artifacts from a registry."""
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
