"""The tests mirror the package and share only tests/support."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "fledge"
MODULES = sorted(TESTS.rglob("*.py"))
WITHOUT_COUNTERPART = {"support", "system"}
"""Shared helpers, and tests of the whole system."""


def imported(path: Path) -> Iterator[str]:
    """Return the full names of modules, or members of modules, that a file imports."""
    package = path.relative_to(TESTS.parent).parts[:-1]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.slow
def test_no_module_imports_a_test_module() -> None:
    wrong = [
        f"{path.relative_to(TESTS)} imports {name}"
        for path in MODULES
        for name in imported(path)
        if re.match(r"tests\.(?!support\.)(.*\.)?(test_|conftest)", name)
    ]
    assert wrong == []


def test_every_folder_has_a_counterpart_in_the_package() -> None:
    folders = {path.parent.relative_to(TESTS).as_posix() for path in MODULES} - {"."}
    packages = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    assert folders - packages == WITHOUT_COUNTERPART


def test_only_the_support_package_shares() -> None:
    """Every module in a folder of tests is a test module; shared helpers are in support."""
    others = {
        path.relative_to(TESTS).as_posix()
        for path in MODULES
        if not re.match(r"test_|__init__\.py$", path.name)
        and path.relative_to(TESTS).parts[0] != "support"
    }
    assert others == {"conftest.py"}


def test_golden_hashes_are_in_one_place() -> None:
    found = {
        path.relative_to(TESTS).as_posix()
        for path in MODULES
        if re.search(r"\b[0-9a-f]{64}\b", path.read_text())
    }
    assert found == {"support/golden.py"}
