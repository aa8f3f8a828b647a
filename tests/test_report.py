"""Formatted counts."""

from __future__ import annotations

import pytest

from fledge.report import counted


@pytest.mark.parametrize(
    ("count", "kind", "words"),
    [
        (0, "file", "0 files"),
        (1, "file", "1 file"),
        (2, "file", "2 files"),
        (1, "directory", "1 directory"),
        (2, "directory", "2 directories"),
        (3, "entry", "3 entries"),
        (2, "block device", "2 block devices"),
    ],
)
def test_counted(count: int, kind: str, words: str) -> None:
    assert counted(count, kind) == words
