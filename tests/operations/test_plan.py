"""What `plan` says of a build, and that it downloads nothing but what tells that."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fledge.errors import OfflineError
from fledge.operations.build import build
from fledge.operations.lock import lock
from fledge.operations.plan import plan
from fledge.session import Session
from tests.support import images, project, releases, tars
from tests.support.httpd import Server, status


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


def test_the_layers_of_an_image(tmp_path: Path) -> None:
    image = images.image(tars.pack(tars.file("a")), tars.pack(tars.file("b")))
    with Server() as server:
        base = "/v2/team/app"
        server.answers[f"{base}/manifests/1"] = status(200, image.body)
        for blob in image.blobs:
            server.answers[f"{base}/blobs/sha256:{images.sha256(blob)}"] = status(200, blob)
        host = urlsplit(server.url("")).netloc
        text = (
            'version = "1"\nstrategy = "oci_rootfs"\n'
            f'[source]\nimage = "docker://{host}/team/app:1"\n{project.LOCAL_AGENT}'
        )
        config = project.write(tmp_path, "fledge.toml", text.encode())
        project.write(tmp_path, "kestrel", project.program())
        [need] = plan(config, tmp_path / "app.img", platform="linux/amd64").needs
        assert need.size == sum(map(len, image.blobs[1:]))
        assert need.note == "2 of 2 layers"
        layers = [f"{base}/blobs/sha256:{images.sha256(blob)}" for blob in image.blobs[1:]]
        assert not {each.path for each in server.seen} & set(layers), "only what tells that"
        build(config, tmp_path / "app.img", platform="linux/amd64")
        assert plan(config, tmp_path / "app.img", platform="linux/amd64").needs == ()
