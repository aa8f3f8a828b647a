"""Runs the command ``fledge diff``."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from fledge.cli import views
from fledge.cli.pages import page
from fledge.cli.pages.difference import difference_page
from fledge.cli.reporters import reported
from fledge.operations.diff import Difference, diff
from fledge.operations.inspect import json_text
from fledge.operations.sizes import size_changes
from fledge.tree.names import printable


def run(before: Path, after: Path, verbose: bool, as_json: bool, html: Path | None) -> None:
    """Explain how two artifacts differ."""
    with reported(verbose) as reporter:
        if html:
            page.check(html, before, after)
        difference = diff(before, after, reporter=reporter)
        if html:
            sizes = size_changes(before, after, difference)
            page.write(html, difference_page(before, after, difference, sizes))
        if as_json:
            print(json.dumps(_as_json(difference), indent=2))
        else:
            for line in views.difference_lines(
                difference, None if verbose else views.MAX_DIFFERENCE
            ):
                print(printable(line))
    if not difference.same_bytes:
        raise typer.Exit(1)


def _as_json(difference: Difference) -> dict[str, object]:
    return {
        "same_bytes": difference.same_bytes,
        "first_difference": difference.first_difference,
        "same_tree": difference.same_tree,
        "not_compared": list(difference.not_compared),
        "notes": list(difference.notes),
        "container": {name: _pair(*both) for name, both in difference.container.items()},
        "details": {
            name: {
                "paths": detail.paths,
                **json_text("first", b"/" + detail.path),
                **_pair(detail.before, detail.after),
            }
            for name, detail in difference.details.items()
        },
        "changes": [
            {
                **json_text("path", change.path),
                "kind": change.kind,
                "fields": {name: _pair(*both) for name, both in change.fields.items()},
                "lines": list(change.lines),
            }
            for change in difference.changes
        ],
    }


def _pair(before: object, after: object) -> dict[str, object]:
    return {"before": _json_value(before), "after": _json_value(after)}


def _json_value(value: object) -> object:
    """Convert a value to JSON.

    Bytes that are not UTF-8 become an object with ``text`` and ``text_base64``. A mapping becomes
    a list of objects with ``name`` and ``value``.
    """
    if isinstance(value, bytes):
        text = json_text("text", value)
        return text if len(text) > 1 else value.decode()
    if isinstance(value, dict):
        return [
            {"name": _json_value(key), "value": _json_value(each)} for key, each in value.items()
        ]
    return [_json_value(each) for each in value] if isinstance(value, list | tuple) else value
