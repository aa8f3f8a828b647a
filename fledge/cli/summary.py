"""Prints the summary of an artifact, as text or JSON."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

from fledge.cli import views
from fledge.cli.jsonwriter import ObjectWriter
from fledge.cli.reporters import reported
from fledge.formats import Opened, open_artifact
from fledge.operations.entries import find_node
from fledge.operations.inspect import (
    Summary,
    describe,
    describe_entries,
    finding_provenance,
    summarize,
)
from fledge.tree import Node
from fledge.tree.names import printable


def print_summary(artifact: Path, path: bytes, as_json: bool, verbose: bool) -> bool:
    """Print the summary; as JSON, with all entries at ``path`` and below.

    Returns False if the artifact is a sealed disk that is damaged.
    """
    with reported(verbose) as reporter, ExitStack() as stack:
        # The display has to end before anything is printed.
        with (
            reporter.work(f"reading {artifact.name}") as progress,
            finding_provenance(artifact, progress) as record,
        ):
            opened = stack.enter_context(open_artifact(artifact))
            top = find_node(opened, path, follow=False)
            found = summarize(opened, record.result(), progress)
        if as_json:
            _print_json(opened, found, path, top)
        else:
            for line in views.summary_lines(opened, found):
                print(printable(line))
    return not found.seal or found.seal.is_intact


def _print_json(opened: Opened, summary: Summary, path: bytes, top: Node) -> None:
    facts = describe(opened, summary)
    with ObjectWriter(sys.stdout) as writer:
        for name, value in facts.items():
            writer.member(name, value)
        writer.items("entries", describe_entries(opened, path, top))
