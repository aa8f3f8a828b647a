"""Fixtures that several test modules use."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fledge.cli import app as cli
from fledge.operations.push import push
from tests.support import shipped
from tests.support.httpd import Server
from tests.support.oci_registry import OciRegistry, Repository
from tests.support.project import Fledge, Outcome

pytest_plugins = ["tests.support.no_skip"]

# A background job may have these signals ignored, which its children inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return paths of folders, which the tests that need one make."""
    folder = tmp_path_factory.mktemp("own")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, own_folders: Iterator[Path]) -> None:
    """Hide the user's cache, logins, proxy, registries and SOURCE_DATE_EPOCH from the tests."""
    own = next(own_folders)
    monkeypatch.setenv("FLEDGE_CACHE_DIR", str(own / "cache"))
    monkeypatch.setenv("DOCKER_CONFIG", str(own / "docker"))
    for name in (
        *("GITHUB_TOKEN", "FLEDGE_GITHUB_API", "SOURCE_DATE_EPOCH", "NO_COLOR", "DOCKER_HOST"),
        *("FLEDGE_INSECURE_REGISTRIES", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC"),
        *("FLEDGE_KERNEL", "FLEDGE_CACHE_REGISTRY", "FLEDGE_CACHE_TRUSTED"),
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def github(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server in place of GitHub's API, with no pause between retries."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with Server() as server:
        monkeypatch.setenv("FLEDGE_GITHUB_API", server.url(""))
        yield server


@pytest.fixture
def fledge(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Fledge:
    """Run the command in this process, in ``tmp_path`` and with no pause between retries."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)

    def run(*arguments: str | Path) -> Outcome:
        with pytest.raises(SystemExit) as end:
            cli.app([str(argument) for argument in arguments], prog_name="fledge")
        captured = capsys.readouterr()
        return Outcome(int(end.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the artifacts of `tests.support.shipped` for two architectures."""
    return shipped.build_all(tmp_path_factory.mktemp("artifacts"))


@pytest.fixture
def web(artifacts: Path, tmp_path: Path) -> Path:
    """A copy of the disk for amd64, with its documents."""
    return shipped.copy(artifacts / "amd64" / "web.img", tmp_path / "web")


@pytest.fixture
def served() -> Iterator[OciRegistry]:
    """A registry that follows the specification to the letter."""
    with OciRegistry().serve() as served:
        yield served


@pytest.fixture(scope="session")
def stock(artifacts: Path) -> Repository:
    """A repository with the disk for amd64 under the tag 1."""
    with OciRegistry().serve() as served:
        web = artifacts / "amd64" / "web.img"
        push(web, f"{served.host}/web:1", session=shipped.session(artifacts))
        return served.repository("web")


@pytest.fixture
def stocked(served: OciRegistry, stock: Repository) -> OciRegistry:
    """A registry with a repository ``web``, which has the disk for amd64 under the tag 1."""
    served.repositories["web"] = stock.copy()
    return served
