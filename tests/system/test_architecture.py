"""The rules about imports."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import grimp
import pytest

import fledge
from tests.support import project

CHECKOUT = Path(__file__).parents[2]
PACKAGE = Path(fledge.__file__).parent
SCRIPT = runpy.run_path(str(CHECKOUT / "scripts" / "import-graph"))
MOST_AT_THE_TOP = 20

cycles: Callable[[grimp.ImportGraph], list[list[str]]] = SCRIPT["cycles"]
diagram: Callable[[grimp.ImportGraph], str] = SCRIPT["diagram"]
parts: Callable[[grimp.ImportGraph], grimp.ImportGraph] = SCRIPT["parts"]
read: Callable[[Path, str], grimp.ImportGraph] = SCRIPT["read"]


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> grimp.ImportGraph:
    return read(CHECKOUT, str(tmp_path_factory.mktemp("imports")))


def lint_imports(checkout: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [program, "--no-logo", "--cache-dir", cache],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_contracts_are_kept(tmp_path: Path) -> None:
    done = lint_imports(CHECKOUT, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("tree/nodes.py", "import fledge.cli.app", "Imports point down"),
        (
            "tree/nodes.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import fledge.oci.image",
            "Imports point down",
        ),
        ("cpio/newc.py", "from fledge.ext4 import structures", "Imports point down"),
        ("novelty.py", "", "Imports point down"),
        (
            "ext4/writer.py",
            "import fledge.net.fetch",
            "Formats know the tree and this machine, not where a tree came from",
        ),
        (
            "operations/diff.py",
            "from fledge.ext4 import structures",
            "Only fledge/formats.py names a format",
        ),
    ],
    ids=["up", "type", "aside", "no-layer", "network", "format-by-name"],
)
def test_a_forbidden_import_breaks_a_contract(
    module: str, line: str, contract: str, tmp_path: Path
) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(CHECKOUT / "fledge", tmp_path / "fledge", ignore=ignored)
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    with (tmp_path / "fledge" / module).open("a") as file:
        file.write(f"\n{line}\n")
    done = lint_imports(tmp_path, tmp_path / "cache")
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{contract} BROKEN" in done.stdout
    name = module.removesuffix(".py").replace("/", ".")
    assert f"fledge.{name}" in done.stdout


def test_no_two_modules_import_each_other(modules: grimp.ImportGraph) -> None:
    assert cycles(modules) == []


def test_no_two_parts_import_each_other(modules: grimp.ImportGraph) -> None:
    assert cycles(parts(modules)) == []


def test_a_cycle_is_found() -> None:
    graph = grimp.ImportGraph()
    for importer, imported in [("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("d", "e")]:
        graph.add_import(importer=importer, imported=imported)
    assert cycles(graph) == [["a", "b", "c"]]


def test_the_house_stays_small_at_the_top(modules: grimp.ImportGraph) -> None:
    assert len(parts(modules).modules) <= MOST_AT_THE_TOP


def test_the_drawing_is_up_to_date(modules: grimp.ImportGraph) -> None:
    page = (CHECKOUT / "ARCHITECTURE.md").read_text()
    expected = f"```mermaid\n{diagram(parts(modules))}\n```"
    assert expected in page, "replace the diagram: .venv/bin/python scripts/import-graph --mermaid"


@pytest.mark.slow
def test_a_config_is_handed_to_few_functions(tmp_path: Path) -> None:
    """Sources and formats carry their own settings; only operations and the lock see a config."""
    toml = project.make_rootfs(tmp_path)
    config = fledge.check(toml)
    artifact = fledge.build(config, tmp_path / "x.img", platform="linux/amd64")
    takers: set[tuple[str, str]] = set()

    def watch(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(PACKAGE)):
            names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            arguments = [frame.f_locals.get(name) for name in names]
            if any(isinstance(each, fledge.Config) or _has_config(each) for each in arguments):
                takers.add((Path(code.co_filename).parent.name, code.co_name))

    sys.setprofile(watch)
    try:
        fledge.verify(artifact.path, config)
    finally:
        sys.setprofile(None)
    assert {folder for folder, _ in takers} == {"operations", "project"}
    assert len(takers) <= 35


def _has_config(value: object) -> bool:
    """A field of the struct is a config."""
    fields = getattr(type(value), "__struct_fields__", ())
    return isinstance(fields, tuple) and any(
        isinstance(getattr(value, name, None), fledge.Config) for name in fields
    )
