"""FLEDGE_NO_SKIP=1 turns every skipped test into a failure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SKIPPING = """
import unittest

import pytest


def test_while_it_runs():
    pytest.skip("reason A")


@pytest.mark.skip(reason="reason B")
def test_by_mark():
    pass


@pytest.mark.skipif(True, reason="reason C")
def test_by_condition():
    pass


@pytest.fixture
def tool():
    pytest.skip("reason D")


def test_by_fixture(tool):
    pass


@pytest.mark.parametrize("nothing", [])
def test_without_parameters(nothing):
    pass


class Case(unittest.TestCase):
    def test_by_unittest(self):
        self.skipTest("reason E")


@pytest.mark.xfail(reason="known")
def test_expected_failure():
    raise AssertionError


def test_that_passes():
    pass
"""

SKIPPED_MODULE = 'import pytest\npytest.skip("reason F", allow_module_level=True)\n'

MODULE_WITHOUT_IMPORT = 'import pytest\npytest.importorskip("no_such_module", reason="reason G")\n'


def run(folder: Path, no_skip: str) -> tuple[int, str]:
    """Run pytest on tests that skip. Returns its exit code and standard output."""
    (folder / "test_skipping.py").write_text(SKIPPING)
    (folder / "test_module.py").write_text(SKIPPED_MODULE)
    (folder / "test_import.py").write_text(MODULE_WITHOUT_IMPORT)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "tests.support.no_skip"),
            *("-p", "no:cacheprovider", "--continue-on-collection-errors"),
            # No short summary, which has whole messages where CI is set.
            *("-rN", "-c", "/dev/null", "--rootdir", folder, folder),
        ],
        env=os.environ | {"FLEDGE_NO_SKIP": no_skip, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_skipped_tests_and_modules_fail(tmp_path: Path) -> None:
    code, out = run(tmp_path, "1")
    assert code == 1
    # An error is a failure outside of the test itself: 4 of tests, 2 of modules.
    assert "2 failed, 1 passed, 1 xfailed, 6 errors in" in out
    assert out.count("FLEDGE_NO_SKIP=1 allows no skipped test\n") == 8
    assert all(f"reason {letter}" in out for letter in "ABCDEFG")


@pytest.mark.parametrize("no_skip", ["", "0"])
def test_elsewhere_they_are_skipped(no_skip: str, tmp_path: Path) -> None:
    code, out = run(tmp_path, no_skip)
    assert code == 0
    assert "1 passed, 8 skipped, 1 xfailed in" in out
