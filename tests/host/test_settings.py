"""The environment, and that only one module reads it."""

import os
import re
from pathlib import Path

import pytest

import fledge
from fledge.errors import HostError
from fledge.host import settings
from fledge.host.settings import Settings
from fledge.session import Session

PACKAGE = Path(fledge.__file__).parent


@pytest.mark.parametrize(
    ("own", "shared", "folder"),
    [
        ("/own", "/shared", "/own"),
        ("", "/shared", "/shared/fledge"),
        ("", "not/absolute", "/home/me/.cache/fledge"),
        ("", "", "/home/me/.cache/fledge"),
    ],
)
def test_folder_of_the_cache(own: str, shared: str, folder: str) -> None:
    environment = {"FLEDGE_CACHE_DIR": own, "XDG_CACHE_HOME": shared, "HOME": "/home/me"}
    assert Session.default(environment=environment).cache.root == Path(folder)


def test_own_folder_does_not_move_with_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings({"FLEDGE_CACHE_DIR": "mine"}).cache_folder == tmp_path / "mine"


def test_no_home() -> None:
    with pytest.raises(HostError) as caught:
        Session.default(environment={"HOME": "~"})
    assert "FLEDGE_CACHE_DIR" in caught.value.hint


def test_home_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/of/the/process")
    assert Settings().home not in (None, Path("/of/the/process"))


def test_settings_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = Settings.from_environment()
    assert found.program_folders == "/nowhere"
    assert Settings().program_folders == os.defpath


def test_no_other_module_looks_at_the_environment() -> None:
    looking = {
        path
        for path in PACKAGE.rglob("*.py")
        if re.search(
            r"\b(?:environb?|getenvb?|expanduser|expandvars)\b|\.home\(\)", path.read_text()
        )
    }
    assert looking == {Path(settings.__file__)}
