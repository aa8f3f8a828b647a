"""Names in messages."""

from __future__ import annotations

import pytest

from fledge.tree.names import MAX_COMPARED, suggestion

VERSIONS = ["v0.4.1", "v0.4.0", "v0.10.0", "v0.9.0", "nightly", "v0.3.0"]


@pytest.mark.parametrize(
    ("wanted", "known", "hint"),
    [
        ("0.4.1", VERSIONS, "Did you mean v0.4.1?"),
        ("V0.4.1", VERSIONS, "Did you mean v0.4.1?"),
        ("v1.25", ["1.25", "1.25.1"], "Did you mean 1.25?"),
        ("nigthly", VERSIONS, "There is nightly."),
        ("v0.4.2", VERSIONS[:2], "There are v0.4.1, v0.4.0."),
        ("latest", VERSIONS, "There are v0.10.0, v0.9.0, v0.4.1, v0.4.0, v0.3.0 and 1 more."),
        ("latest", ["v1"], "There is v1."),
        ("latest", [], ""),
        ("latest", ["\x1b]0;latest\x07", "latest" * 50], ""),
    ],
)
def test_suggestion(wanted: str, known: list[str], hint: str) -> None:
    assert suggestion(wanted, known) == hint


@pytest.mark.slow
def test_a_suggestion_has_bounds() -> None:
    known = ["ab" * 100] * 1_000_000 + ["wanted"]
    assert f"and {MAX_COMPARED - 5} more" in suggestion("c" * 120, known)
