"""Policies: from options, and from files."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

import fledge
from fledge.errors import ConfigError
from fledge.project.policy import Policy, matches

PAST = "2020-01-01T00:00:00Z"


@pytest.fixture
def keys(tmp_path: Path) -> list[Path]:
    return [fledge.keygen(tmp_path / name, "ed25519").public for name in ("a", "b", "c")]


def load(folder: Path, text: str) -> Policy:
    path = folder / "policy.toml"
    path.write_text(text)
    return Policy.load(path)


def test_all_keys_count_unless_a_threshold_is_given(keys: list[Path]) -> None:
    assert Policy.of(keys).threshold == 3
    assert Policy.of(keys, threshold=2).threshold == 2
    assert [key.name for key in Policy.of(keys).keys] == [str(key) for key in keys]


def test_a_key_that_is_given_twice_counts_once(keys: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.pub"
    copy.write_text("a comment\n" + keys[0].read_text())
    policy = Policy.of([keys[0], copy, keys[0]])
    assert ([key.name for key in policy.keys], policy.threshold) == ([str(keys[0])], 1)
    with pytest.raises(ConfigError, match="threshold is 2, and the number of different keys 1"):
        Policy.of([keys[0], copy], threshold=2)


@pytest.mark.parametrize("threshold", [0, -1, 4])
def test_thresholds_that_make_no_sense(keys: list[Path], threshold: int) -> None:
    with pytest.raises(ConfigError, match=f"the threshold is {threshold}, and"):
        Policy.of(keys, threshold=threshold)


def test_too_many_keys_and_none(tmp_path: Path) -> None:
    many = [fledge.keygen(tmp_path / str(n), "ed25519").public for n in range(17)]
    with pytest.raises(ConfigError, match="this one has 17"):
        Policy.of(many)
    with pytest.raises(ConfigError, match="this one has 0"):
        Policy.of([])


def test_a_file(keys: list[Path], tmp_path: Path) -> None:
    policy = load(
        tmp_path,
        'keys = ["a.pub", "b.pub"]\nthreshold = 1\nexpires = 2999-01-01T00:00:00+02:00\n'
        'builder = "https://b.example"\nsources = ["docker.io/*"]\n',
    )
    assert [key.name for key in policy.keys] == [str(keys[0]), str(keys[1])]
    assert (policy.threshold, policy.builder) == (1, "https://b.example")
    assert policy.sources == ("docker.io/*",)
    assert policy.expires == datetime(2998, 12, 31, 22, tzinfo=timezone.utc)
    policy.check_date()


def test_a_file_that_has_expired(keys: list[Path], tmp_path: Path) -> None:
    policy = load(tmp_path, f'keys = ["a.pub"]\nexpires = {PAST}\n')
    with pytest.raises(ConfigError, match=r"policy.toml expired at 2020-01-01T00:00:00\+00:00"):
        policy.check_date()
    soon = datetime.now(timezone.utc) + timedelta(hours=1)
    Policy.of(keys, expires=soon).check_date()
    with pytest.raises(ConfigError, match="the policy expired at"):
        Policy.of(keys, expires=soon - timedelta(hours=2)).check_date()
    with pytest.raises(ConfigError, match="needs a time zone"):
        Policy.of(keys, expires=soon.replace(tzinfo=None))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", 'keys is missing: write keys = ["team.pub"]'),
        ("keys = []", 'keys is missing: write keys = ["team.pub"]'),
        ('keys = "a.pub"', "must be a list of texts"),
        ('keys = ["a.pub", 1]', "must be a list of texts"),
        ('keys = ["a.pub"]\nthreshold = 0', "must be a whole number from 1"),
        ('keys = ["a.pub"]\nthreshold = "1"', "write 1, a whole number"),
        ('keys = ["a.pub"]\nbuilder = ""', "must be text in quotes"),
        ('keys = ["a.pub"]\nsources = [""]', "must be a list of texts"),
        ('keys = ["a.pub"]\nexpires = "2999-01-01T00:00:00Z"', "must be a time with its zone"),
        ('keys = ["a.pub"]\nexpires = 2999-01-01', "must be a time with its zone"),
        ('keys = ["a.pub"]\nexpires = 2999-01-01T00:00:00', "must be a time with its zone"),
        ('keys = ["a.pub"]\nexpire = 2999-01-01T00:00:00Z', "did you mean expires?"),
        ('keys = ["a.pub"', "policy.toml:"),
        ('keys = ["missing.pub"]', "missing.pub could not be read"),
    ],
)
def test_wrong_files(keys: list[Path], tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, text)
    assert problem in str(raised.value)
    with pytest.raises(ConfigError, match="no such file"):
        Policy.load(tmp_path / "other.toml")


@pytest.mark.parametrize(
    ("uri", "pattern", "expected"),
    [
        ("docker://docker.io/library/nginx:alpine", "docker.io/library/nginx:alpine", True),
        ("docker://docker.io/library/nginx:alpine", "docker://docker.io/library/nginx:*", True),
        ("docker://docker.io/library/nginx:alpine", "docker.io/*", True),
        ("docker://docker.io/library/nginx:alpine", "docker.io/library/nginx", False),
        ("docker://docker.io/library/nginx:alpine", "DOCKER.IO/*", False),
        ("docker://evil.example/docker.io/library/x:1", "docker.io/*", False),
        ("docker://docker.io.evil.example/x:1", "docker.io/*", False),
        ("docker-daemon:docker.io/library/nginx:alpine", "docker.io/*", False),
        ("docker-daemon:docker.io/library/nginx:alpine", "docker-daemon:*", True),
        ("oci:layout:hello", "oci:layout:*", True),
        ("oci:layout:hello", "docker.io/*", False),
    ],
)
def test_sources(uri: str, pattern: str, expected: bool) -> None:
    assert matches(uri, pattern) == expected
