"""A pytest plugin: where FLEDGE_NO_SKIP=1 is set, a test that would be skipped fails.

Elsewhere a test that needs a tool or a right which the machine does not give may skip. `.ci/run`
sets the variable, because nobody would notice that a check is missing.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TypeVar

import pytest

VARIABLE = "FLEDGE_NO_SKIP"

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


# Outermost, because pytest's own hooks turn marks and expected failures into outcomes.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tests skipped by a mark, by a fixture or while they run."""
    return _without_skip((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Modules skipped as a whole."""
    return _without_skip((yield))


def _without_skip(report: Report) -> Report:
    expected_failure = hasattr(report, "wasxfail")
    if report.skipped and not expected_failure and os.environ.get(VARIABLE) == "1":
        reason = report.longrepr
        if isinstance(reason, tuple):
            path, line, message = reason
            reason = f"{path}:{line}: {message}"
        report.outcome = "failed"
        report.longrepr = f"{VARIABLE}=1 allows no skipped test\n{reason}"
    return report
