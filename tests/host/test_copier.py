"""Small contents that are read together."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fledge.errors import CorruptError
from fledge.host.copier import MAX_GAP, MAX_WINDOW, Copier
from fledge.host.output import Output
from fledge.tree.content import OpenFile, Span

UNIT = 4096
DATA = os.urandom(3 * MAX_WINDOW)
OFFSETS = st.integers(0, 2 * MAX_WINDOW) | st.sampled_from([0, 1, MAX_GAP, MAX_WINDOW])


def copied(spans: list[Span], image: Path) -> bytes:
    """Return what is in an image after these contents were copied to its second unit."""
    with (
        image.open("w+b") as file,
        closing(Output(file.fileno())) as output,
        closing(Copier(output)) as copier,
    ):
        copier.copy_small(spans, UNIT, UNIT)
        output.finish(UNIT * (1 + sum(-(-span.size // UNIT) for span in spans)))
    return image.read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    st.lists(
        st.tuples(OFFSETS, st.integers(1, 2 * UNIT + 1), st.integers(0, 2)), min_size=1, max_size=12
    )
)
def test_contents_arrive_in_order(tmp_path: Path, places: list[tuple[int, int, int]]) -> None:
    """Whatever file and order they come from, and whether they overlap."""
    for name in ("0", "1", "2"):
        (tmp_path / name).write_bytes(name.encode() + DATA)
    paths = [tmp_path / "0", tmp_path / "1", tmp_path / "2"]
    opened = OpenFile(os.open(paths[2], os.O_RDONLY))
    spans = [
        Span(paths[file], offset, size, opened=opened if file == 2 else None)
        for offset, size, file in places
    ]
    expected = bytes(UNIT)
    for offset, size, file in places:
        expected += (b"%d" % file + DATA)[offset : offset + size].ljust(size + -size % UNIT, b"\0")
    assert copied(spans, tmp_path / "image") == expected


def test_a_file_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    path.write_bytes(bytes(1000))
    with pytest.raises(CorruptError, match="layer changed while it was read"):
        copied([Span(path, 0, 600), Span(path, 700, 301)], tmp_path / "image")
