"""What `examine` says of a machine."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from fledge.operations import doctor
from fledge.operations.doctor import Resource, examine
from fledge.session import Session
from tests.support.project import Fledge


def found(tmp_path: Path, **variables: str) -> dict[str, list[Resource]]:
    """Examine a machine without programs, with these variables."""
    environment = {"HOME": str(tmp_path), "PATH": str(tmp_path), **variables}
    resources: dict[str, list[Resource]] = {}
    for each in examine(Session.default(environment=environment)):
        resources.setdefault(each.name, []).append(each)
    return resources


def test_logins_without_secrets(tmp_path: Path) -> None:
    login = {"auths": {"r.example": {"auth": "c2VjcmV0OnNlY3JldA=="}}, "credsStore": "pass"}
    (tmp_path / "config.json").write_text(json.dumps(login))
    [logins] = found(tmp_path, DOCKER_CONFIG=str(tmp_path))["logins"]
    assert logins.state == "works"
    assert logins.detail == f"all, by a helper, r.example ({tmp_path}/config.json)"


@pytest.mark.parametrize(
    ("name", "value", "resource"),
    [
        ("FLEDGE_KERNEL", "/nope", "kernel"),
        ("SSL_CERT_FILE", "/nope", "CA certificates"),
        ("FLEDGE_CACHE_DIR", "/proc/1/nope", "cache"),
        ("FLEDGE_MIN_SPEED", "fast", "network"),
        ("https_proxy", "http://[", "proxy"),
        ("REGISTRY_AUTH_FILE", "/dev/null", "logins"),
    ],
)
def test_what_is_configured_and_does_not_work(
    tmp_path: Path, name: str, value: str, resource: str
) -> None:
    resources = found(tmp_path, **{name: value})
    assert resources[resource][0].state == "broken"
    assert not any(
        each.state == "broken" for key in resources if key != resource for each in resources[key]
    )


def test_a_proxy_without_its_login(tmp_path: Path) -> None:
    proxies = found(tmp_path, HTTPS_PROXY="http://user:secret@proxy.example:3128")["proxy"]
    assert proxies == [Resource("proxy", "works", "proxy.example:3128 (https_proxy)")]


def test_what_is_missing_is_not_broken(tmp_path: Path) -> None:
    resources = found(tmp_path)
    assert [each.state for each in resources["builder"]] == ["absent"]
    assert "completion" not in resources, "there is no shell"
    assert {each.detail for each in resources["format"]} >= {"ext4", "erofs"}


def test_completion_that_is_installed(tmp_path: Path) -> None:
    (tmp_path / "fish").write_text("#!/bin/sh\n")
    (tmp_path / "fish").chmod(0o755)
    assert found(tmp_path)["completion"][0].state == "absent"
    script = tmp_path / ".config/fish/completions/fledge.fish"
    script.parent.mkdir(parents=True)
    script.touch()
    assert found(tmp_path)["completion"] == [Resource("completion", "works", f"fish: {script}")]


def test_what_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forever = threading.Event()
    monkeypatch.setattr(doctor, "TIME_LIMIT", 0.2)
    monkeypatch.setitem(doctor.CHECKS, "kernel", lambda _: iter([forever.wait()]))
    [kernel] = found(tmp_path)["kernel"]
    assert kernel.state == "broken"
    assert "no answer within" in kernel.detail
    forever.set()


def test_the_command(fledge: Fledge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    done = fledge("doctor")
    assert (done.code, done.err) == (0, "")
    assert "✓ cache: " in done.out
    monkeypatch.setenv("FLEDGE_KERNEL", "/nope")
    done = fledge("doctor", "--json")
    assert done.code == 5
    [kernel] = [each for each in json.loads(done.out) if each["name"] == "kernel"]
    assert kernel["state"] == "broken"
