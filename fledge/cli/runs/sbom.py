"""Runs the command ``fledge sbom``."""

from __future__ import annotations

import sys
from pathlib import Path

from fledge.cli.reporters import reported
from fledge.operations.sbom import sbom
from fledge.project.sboms.table import SbomFormat
from fledge.session import Session


def run(artifact: Path, kind: SbomFormat, verbose: bool) -> None:
    """Print the software bill of materials of an artifact."""
    with reported(verbose) as reporter:
        text = sbom(artifact, kind, session=Session.default(reporter=reporter))
    sys.stdout.write(text.decode())
