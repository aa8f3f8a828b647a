"""bench/compare.py: a commit is as fast as itself, and a slowdown of a later one is seen."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
BENCHMARK = "entries --counts 500"
SLOWDOWN = "\nfor _ in range(30_000_000):\n    pass\n"
"""Takes about three times as long as the benchmark."""
IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@localhost")

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of this checkout, which is at its tag ``same``; the next one is ``slow``."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("fledge", "bench"):
        shutil.copytree(CHECKOUT / name, folder / name)
    for name in ("pyproject.toml", ".gitignore"):
        shutil.copy(CHECKOUT / name, folder)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, *IDENTITY, "commit", "--quiet", "-m", "same")
    git(folder, "tag", "same")
    with (folder / "fledge" / "tree" / "nodes.py").open("a") as module:
        module.write(SLOWDOWN)
    git(folder, *IDENTITY, "commit", "--quiet", "-a", "-m", "slow")
    git(folder, "tag", "slow")
    git(folder, "checkout", "--quiet", "same")
    return folder


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", folder, *arguments], check=True)


def compare(
    repository: Path, a: str, b: str, rounds: str = "1"
) -> subprocess.CompletedProcess[str]:
    script = repository / "bench" / "compare.py"
    options = ["--only", BENCHMARK, "--rounds", rounds, "--noise", "1"]
    command = [sys.executable, str(script), a, b, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_commit_is_as_fast_as_itself(repository: Path) -> None:
    done = compare(repository, "same", str(repository), rounds="3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| 500 files | s of the processor |" in done.stdout
    assert "slower" not in done.stdout


def test_a_slower_commit_is_seen(repository: Path) -> None:
    done = compare(repository, str(repository), "slow")
    assert done.returncode == 1, done.stdout + done.stderr
    [line] = [line for line in done.stdout.splitlines() if "s of the processor" in line]
    assert line.endswith("| slower |")


def test_a_commit_that_cannot_run_a_benchmark_is_seen(repository: Path, tmp_path: Path) -> None:
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    (tmp_path / "fledge").mkdir()
    (tmp_path / "fledge" / "__init__.py").write_text("")
    done = compare(repository, str(repository), str(tmp_path))
    assert done.returncode == 2
    assert f"{tmp_path} cannot run {BENCHMARK}" in done.stderr
    assert "Traceback" not in done.stdout


def test_json_has_the_machine_and_every_run(tmp_path: Path) -> None:
    script = CHECKOUT / "bench" / "entries.py"
    options = ["--counts", "100", "200", "--runs", "2", "--json", "result", "--svg", "curve.svg"]
    subprocess.run([sys.executable, script, *options], cwd=tmp_path, check=True)
    found = json.loads((tmp_path / "result").read_bytes())
    assert found["benchmark"] == "entries"
    assert {"cores", "processor", "kernel", "python", "commit"} <= found["machine"].keys()
    assert [row["name"] for row in found["rows"]] == ["100 files", "200 files"]
    assert all(len(row["cpu_seconds"]) == 2 for row in found["rows"])
    assert (tmp_path / "curve.svg").read_text().count("<polyline") == 2
