"""The public interface of ``import fledge``: names, types, errors, and its cost."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import fledge
from fledge import errors
from tests.support import project, typed_use

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "docs/reference/library.md"

PUBLIC = {
    *("PluginManifest", "manifest"),
    *("init", "migrate"),
    *("build_all", "BuildResult", "Job", "Lookups"),
    *(
        "analyze",
        "boot",
        "boot_command",
        "build",
        "check",
        "check_kernel",
        "check_target",
        "diff",
        "examine",
        "fetch",
        "inspect",
        "json_schema",
        "lock",
        "open_artifact",
        "plan",
    ),
    *("verify", "tune_for_builds"),
    *("Pulled", "Pushed", "pull", "push"),
    *("KeyPair", "Policy", "PublicKey", "Trusted", "keygen", "sign", "verify_signatures"),
    *("Console", "Ending", "ExpectationError", "Gate", "Machine"),
    *("Analysis", "Artifact", "BuildPlan", "Change", "Detail", "Difference", "Opened", "Program"),
    "Summary",
    *("Finding", "KernelCheck", "KernelConfig", "Requirement", "Resource", "State"),
    *("SealCheck", "verify_seal", "sbom"),
    *("Verification", "Config", "Digest", "Input", "Platform", "Tree"),
    *("Cache", "Reporter", "Session", "Settings", "Step", "Transfer"),
    *("FORMATS", "Format", "Kind", "SOURCES", "Source"),
    *("ConfigError", "CorruptError", "FledgeError", "HostError", "InvalidConfig"),
    *("NetworkError", "OfflineError", "__version__"),
}


def test_the_public_names() -> None:
    assert set(fledge.__all__) == PUBLIC
    assert fledge.__all__ == sorted(fledge.__all__, key=_ruff_order)
    for name in fledge.__all__:
        assert getattr(fledge, name) is not None
        assert name in dir(fledge)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fledge.nothing


def _ruff_order(name: str) -> tuple[int, str]:
    """Constants, classes, the rest."""
    rank = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return rank, name


def test_every_public_name_is_in_the_reference() -> None:
    named = re.findall(r"^::: fledge\.(\w+)$", LIBRARY.read_text(), re.MULTILINE)
    assert sorted(named) == sorted(fledge.__all__)


def test_no_public_name_hides_a_module() -> None:
    folder = Path(fledge.__file__).parent
    modules = {path.stem for path in folder.iterdir()} - {"__init__"}
    assert modules.isdisjoint(fledge.__all__)


def test_importing_it_loads_nothing_else() -> None:
    script = (
        "import sys\nbefore = set(sys.modules)\nimport fledge\n"
        "print(*sorted(n for n in set(sys.modules) - before if n.startswith('fledge')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["fledge", "fledge._version"]


def test_a_format_alone_loads_no_project_and_no_network() -> None:
    script = (
        "import sys\nimport fledge.ext4.format, fledge.cpio.format\n"
        "print(*sorted(n for n in sys.modules if n.startswith(('fledge.', 'requests', 'tomli'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    packages = {name.split(".")[1] for name in done.stdout.split() if name.startswith("fledge.")}
    assert packages == {"_version", "cpio", "errors", "ext4", "host", "report", "tree"}
    assert "requests" not in done.stdout
    assert "tomli" not in done.stdout


def test_a_program_that_uses_it(tmp_path: Path) -> None:
    toml = project.make(tmp_path / "project")
    assert typed_use.build_and_compare(str(toml), tmp_path)


def test_it_works_without_naming_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    project.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    artifact = fledge.build()
    assert artifact.path == Path("plugin.cpio.gz")
    assert str(artifact.digest).startswith("sha256:")
    assert fledge.verify("plugin.cpio.gz").equal
    assert capfd.readouterr() == ("", "")


def test_errors_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(fledge.ConfigError, match=r"no such file\nRun fledge in a folder") as raised:
        fledge.build()
    assert raised.value.exit_code == 2


def test_the_tree_of_errors_is_the_documented_one() -> None:
    assert errors.__doc__
    documented = dict(re.findall(r"(\w+Error|InvalidConfig) +(?:exit code )?(\d):", errors.__doc__))
    classes = [getattr(fledge, name) for name in fledge.__all__]
    actual = {
        each.__name__: str(each.exit_code)
        for each in classes
        if isinstance(each, type) and issubclass(each, fledge.FledgeError)
    }
    assert documented == actual


@pytest.mark.slow
def test_the_example_for_the_library_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    [example] = re.findall(r"```python\n(.*?)```", LIBRARY.read_text(), re.DOTALL)
    subprocess.run([sys.executable, "-c", example], check=True)


@pytest.mark.real
@pytest.mark.parametrize(
    "checker",
    [("mypy", "--strict", "--cache-dir=/dev/null"), ("pyright", "--pythonpath", sys.executable)],
    ids=["mypy", "pyright"],
)
def test_type_checkers_understand_it(checker: tuple[str, ...], tmp_path: Path) -> None:
    use = tmp_path / "use.py"
    use.write_text(Path(typed_use.__file__).read_text())
    name, *options = checker
    command = [sys.executable, "-m", name, *options, str(use)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # The checker sees types, not Any.
    use.write_text(use.read_text().replace("size: int = second.size", "size: str = second.size"))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
