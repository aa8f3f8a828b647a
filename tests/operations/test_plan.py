"""What `plan` says of a build, and that it downloads nothing but what tells that."""

from __future__ import annotations

from pathlib import Path

import pytest

from fledge.errors import OfflineError
from fledge.operations.build import build
from fledge.operations.lock import lock
from fledge.operations.plan import plan
from fledge.session import Session
from tests.support import project, releases
from tests.support.httpd import Server


@pytest.fixture
def config(tmp_path: Path, github: Server) -> Path:
    """A project whose agent is a release."""
    releases.publish(github, {"kestrel": project.program()}, tag="v1")
    return project.make(tmp_path, '[agent]\nversion = "v1"\n')


def test_a_release(config: Path, github: Server) -> None:
    found = plan(config, config.parent / "plugin.gz")
    assert [each.role for each in found.needs] == ["busybox", "agent"]
    assert found.needs[1].uri.endswith("/kestrel")
    assert found.needs[1].note == "v1"
    assert not any(each.path.endswith("/kestrel") for each in github.seen)


def test_after_a_build_nothing_is_left(config: Path) -> None:
    lock(config)
    build(config, config.parent / "plugin.gz")
    session = Session.default(offline=True)
    assert plan(config, config.parent / "plugin.gz", session=session).needs == ()


def test_offline_it_needs_what_it_cannot_look_up(config: Path) -> None:
    with pytest.raises(OfflineError):
        plan(config, session=Session.default(offline=True))
