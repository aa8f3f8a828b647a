"""How much of an artifact ``fledge inspect`` reads."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from fledge import formats
from fledge.cli import summary
from fledge.cli.runs import inspect
from fledge.formats import Opened
from tests.support import project
from tests.support.project import Fledge


@pytest.mark.parametrize(
    ("arguments", "only"),
    [
        ((), None),
        (("/init",), b"/init"),
        (("/etc",), b"/etc"),
        (("-l",), None),
        (("-l", "/etc"), None),
        (("--json",), None),
        (("--json", "/etc"), None),
    ],
)
def test_only_a_path_is_read_where_only_a_path_is_shown(
    fledge: Fledge,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    only: bytes | None,
) -> None:
    asked = []

    def recording(path: Path, only: bytes | None = None) -> AbstractContextManager[Opened]:
        asked.append(only)
        return formats.open_artifact(path, only)

    project.make(tmp_path)
    fledge("build", "-q")
    for module in (inspect, summary):
        monkeypatch.setattr(module, "open_artifact", recording)
    assert fledge("inspect", "plugin.cpio.gz", *arguments).code == 0
    assert asked == [only]
