"""The settings that fledge changes in its process."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_tuned_only_when_asked() -> None:
    code = (
        "import gc, sys, fledge\n"
        "from fledge import build\n"
        "before = gc.isenabled(), sys.getswitchinterval()\n"
        "fledge.tune_for_builds()\n"
        "print(*before, gc.isenabled(), sys.getswitchinterval())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    collected, interval, tuned, tuned_interval = done.stdout.split()
    assert (collected, tuned) == ("True", "False")
    assert float(interval) == pytest.approx(0.005)
    assert float(tuned_interval) == pytest.approx(0.0005)
