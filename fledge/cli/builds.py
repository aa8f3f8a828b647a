"""Shows what became of several builds."""

from __future__ import annotations

from collections.abc import Sequence

from fledge.cli.artifacts import as_object, as_text, beside_as_object, inputs_as_list
from fledge.cli.lines import LineReporter
from fledge.cli.projects import print_failures
from fledge.cli.units import path_text
from fledge.operations.build import find_beside
from fledge.operations.builds import BuildResult
from fledge.project.manifest import path_beside


def show(
    results: Sequence[BuildResult], reporter: LineReporter | None, as_json: bool, as_list: bool
) -> int:
    """Print the paths of the artifacts, or JSON, and why some failed. Returns the exit code.

    ``reporter`` prints how many there are; None: nothing does.
    """
    if reporter:
        _print_counts(results, reporter)
    if as_json:
        objects = [_as_object(each) for each in results]
        print(as_text(objects if as_list else objects[0]))
    else:
        for each in results:
            if each.path and not each.error:
                print(path_text(each.path))
    return print_failures([(each.name, each.error) for each in results])


def _print_counts(results: Sequence[BuildResult], reporter: LineReporter) -> None:
    counts = {
        "built": sum(each.artifact is not None for each in results),
        "up to date": sum(each.unchanged is not None for each in results),
        "failed": sum(each.error is not None for each in results),
    }
    words = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    reporter.line(f"  {words}, in {reporter.seconds():.1f} s")


def _as_object(result: BuildResult) -> dict[str, object]:
    """Return the JSON object of an artifact that was built, was up to date, or failed."""
    if result.artifact:
        return {"name": result.name, "status": "built", **as_object(result.artifact)}
    if result.unchanged and result.path:
        record = result.unchanged
        beside = find_beside(result.path, record.root_hash, record.sboms)
        return {
            "name": result.name,
            "status": "up to date",
            "path": str(result.path),
            "size": result.path.stat().st_size,
            "sha256": result.unchanged.digest.hex,
            "root_hash": result.unchanged.root_hash.hex if result.unchanged.root_hash else None,
            "manifest": str(path_beside(result.path)) if result.unchanged.manifest else None,
            **beside_as_object(beside),
            "inputs": inputs_as_list(result.unchanged.inputs),
        }
    path = str(result.path) if result.path else None
    found: dict[str, object] = {"name": result.name, "status": "failed", "path": path}
    if error := result.error:
        found["error"] = error.message
        found["details"] = list(error.details)
        found["hint"] = error.hint
        found["exit_code"] = error.exit_code
    return found
