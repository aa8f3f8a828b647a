"""What a command line sets, and variables of the environment, in a config."""

from __future__ import annotations

from pathlib import Path

import pytest

from fledge.errors import ConfigError
from fledge.host.settings import Settings
from fledge.project import config
from fledge.project.resolved import ResolvedKey, resolve
from fledge.project.toml import InvalidConfig
from fledge.sources.agent import ReleaseAgent
from tests.support import project

TEXT = """\
version = "1"
strategy = "oci_rootfs"
[source]
image = "registry.example/web:${TAG}"
[agent]
version = "${AGENT}-${TAG}"
[mappings]
"payload/webserver" = "/usr/bin/web"
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAG", "7")
    monkeypatch.setenv("AGENT", "v1")
    project.write(tmp_path, "payload/webserver", project.program())
    return project.write(tmp_path, "fledge.toml", TEXT.encode())


def problems(path: Path, *changes: str) -> list[str]:
    with pytest.raises(InvalidConfig) as failure:
        config.load(path, changes=changes)
    return [each.shown(Path("fledge.toml")) for each in failure.value.problems]


def test_variables_become_part_of_the_config(file: Path) -> None:
    found = config.load(file)
    assert found.source(ReleaseAgent) == ReleaseAgent(version="v1-7")
    assert found.data["source"] == {"image": "registry.example/web:7"}


def test_a_variable_that_is_not_set(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENT")
    [problem] = problems(file)
    assert problem.startswith('fledge.toml:6: [agent] version = "${AGENT}-${TAG}": the variable')
    assert "AGENT is not set" in problem


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ('strategy = "${TAG}"', 'fledge.toml:2: strategy = "${TAG}": variables are expanded only'),
        ('"${TAG}" = "/x"', "${TAG} is not expanded"),
        ('"payload/webserver" = "/x/${TAG}"', "fledge.toml:8: [mappings] "),
    ],
)
def test_a_variable_where_no_key_takes_it(file: Path, line: str, shown: str) -> None:
    lines = TEXT.splitlines()
    lines[1 if line.startswith("strategy") else 7] = line
    file.write_text("\n".join(lines))
    assert any(shown in each for each in problems(file))


def test_a_variable_that_is_not_written_so(file: Path) -> None:
    file.write_text(TEXT.replace("${AGENT}", "${AGENT:-v1}"))
    assert problems(file)[0].endswith("a variable is written ${NAME}")


def test_deep_values_are_looked_into(file: Path) -> None:
    file.write_text(TEXT + f'[target]\nkernel = {"[" * 400}"${{TAG}}"{"]" * 400}\n')
    assert any("variables are expanded only in" in each for each in problems(file))


def test_the_manifest_keeps_its_variables(file: Path) -> None:
    table = '[manifest]\nname = "web"\nworkload.entrypoint = ["sh", "-c", "echo ${HOME}"]\n'
    file.write_text(TEXT + table)
    assert config.load(file).data["manifest"]["workload"]["entrypoint"][2] == "echo ${HOME}"


def test_changes(file: Path) -> None:
    changes = (
        "agent.version=v2=x",  # up to the first = that ends a key
        'source.image="nginx:1"',
        "filesystem.size_buffer_mb=64",
        'mappings."payload/webserver"=/bin/a=b',
        "manifest.version=1.0",
        "manifest.resources.cpu_cores=2",
    )
    found = config.load(file, changes=changes)
    assert found.data["agent"] == {"version": "v2=x"}
    assert found.data["source"] == {"image": "nginx:1"}
    assert found.data["filesystem"] == {"size_buffer_mb": 64}
    assert found.data["mappings"] == {"payload/webserver": "/bin/a=b"}
    assert found.data["manifest"] == {"version": "1.0", "resources": {"cpu_cores": 2}}


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (
            "agent.versoin=v2",
            "--set agent.versoin: [agent] versoin is unknown: did you mean",
        ),
        ("filesystem.size_buffer_mb=big", "--set filesystem.size_buffer_mb: [filesystem] size_"),
        ("nothing.at.all=1", "--set nothing.at.all: nothing is unknown"),
    ],
)
def test_a_change_that_is_wrong(file: Path, change: str, shown: str) -> None:
    assert problems(file, change)[0].startswith(shown)


@pytest.mark.parametrize("change", ["agent.version", "=v1", "a b=1", "version.x=1"])
def test_what_is_no_change(file: Path, change: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        config.load(file, changes=[change])


def test_where_values_come_from(file: Path) -> None:
    document = config.read_document(file, changes=["filesystem.type=erofs"])
    settings = Settings(
        {
            "FLEDGE_CACHE_DIR": "/c",
            "FLEDGE_KEY_PASSPHRASE": "secret",
            "FLEDGE_CACHE_REGISTRY": "r.example/cache",
        }
    )
    found = {each.key: each for each in resolve(document, settings)}
    expected = [
        ResolvedKey("strategy", "oci_rootfs", f"{file}:2"),
        ResolvedKey("source.image", "registry.example/web:7", f"{file}:4, TAG"),
        ResolvedKey("agent.version", "v1-7", f"{file}:6, AGENT, TAG"),
        ResolvedKey("agent.source_strategy", "release", "default"),
        ResolvedKey("filesystem.type", "erofs", "--set filesystem.type"),
        ResolvedKey('mappings."payload/webserver"', "/usr/bin/web", f"{file}:8"),
        ResolvedKey("epoch", 1704067200, "default"),
        ResolvedKey("cache-folder", "/c", "FLEDGE_CACHE_DIR"),
        ResolvedKey("FLEDGE_KEY_PASSPHRASE", "…", "environment"),
    ]
    assert [found[each.key] for each in expected] == expected


def test_values_of_manifest_and_lock(file: Path) -> None:
    (file.parent / "manifest.toml").write_text('name = "web"\n[resources]\ncpu_cores = 2\n')
    (file.parent / "fledge.lock").write_text(
        'version = "1"\n\n[agent]\nname = "v1-7"\n\n[agent.architectures.amd64]\n'
        f'version = "v1"\nurl = "https://example.org/k"\nsha256 = "{"a" * 64}"\n'
    )
    found = {
        each.key: each for each in resolve(config.read_document(file), Settings({"HOME": "/"}))
    }
    path = file.parent / "manifest.toml"
    assert found["manifest.resources.cpu_cores"].origin == f"{path}:3"
    lock = file.parent / "fledge.lock"
    key = "lock.agent.amd64.url"
    assert found[key] == ResolvedKey(key, "https://example.org/k", str(lock))
