"""Uses fledge as a library. Type checkers read this file, and a test runs it."""

from __future__ import annotations

import sys
from pathlib import Path

import fledge


class Printer(fledge.Reporter):
    """Prints notes."""

    def note(self, message: str) -> None:
        print(message)


def build_and_compare(toml: str, folder: Path) -> bool:
    """Build a project twice and inspect the results."""
    session = fledge.Session.default(reporter=Printer(), offline=True)
    config: fledge.Config = fledge.check(toml)
    first: fledge.Artifact = fledge.build(toml, str(folder / "first"), session=session)
    second = fledge.build(config, folder / "second", platform="linux/amd64", session=session)
    digest: fledge.Digest = first.digest
    size: int = second.size
    inputs: list[str] = [item.uri for item in first.inputs]
    difference: fledge.Difference = fledge.diff(first.path, second.path)
    changed: list[bytes] = [change.path for change in difference.changes]
    summary: fledge.Summary = fledge.inspect(first.path)
    program: fledge.Program | None = summary.init
    verification: fledge.Verification = fledge.verify(first.path, toml, session=session)
    with fledge.open_artifact(first.path) as opened:
        tree: fledge.Tree = opened.tree
        paths = [path for path, _ in tree.walk()]
    return (
        verification.equal
        and difference.same_bytes
        and not changed
        and bool(inputs and program and paths and size and digest.hex)
    )


def main() -> int:
    """Return the exit code that the command line would return."""
    try:
        path: Path = fledge.lock("fledge.toml", ["linux/amd64"])
        fledge.fetch("fledge.toml", [fledge.Platform("linux", "amd64")])
        print(path)
    except fledge.InvalidConfig as error:
        print("\n".join(problem.message for problem in error.problems))
        return error.exit_code
    except fledge.FledgeError as error:
        print(error.message, error.hint)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
