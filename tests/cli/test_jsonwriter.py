"""`ObjectWriter` writes the JSON that json.dumps returns."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.cli.jsonwriter import ObjectWriter

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)


def written(members: dict[str, Any], lists: dict[str, list[Any]]) -> str:
    file = io.StringIO()
    with ObjectWriter(file) as writer:
        for name, value in members.items():
            writer.member(name, value)
        for name, items in lists.items():
            writer.items(name, iter(items))
    return file.getvalue()


@pytest.mark.slow
@given(st.dictionaries(st.text(), VALUES))
def test_members_are_as_json_indents_them(members: dict[str, Any]) -> None:
    assert written(members, {}) == json.dumps(members, indent=2) + "\n"


@pytest.mark.slow
@given(
    st.dictionaries(st.text(min_size=1), VALUES),
    st.dictionaries(st.just("").map(lambda name: name), st.lists(VALUES)),
)
def test_lists_are_whole(members: dict[str, Any], lists: dict[str, list[Any]]) -> None:
    assert json.loads(written(members, lists)) == {**members, **lists}


def test_an_item_has_a_line() -> None:
    text = written({"size": 1, "names": {"a": []}}, {"entries": [{"a": [1, 2]}, {"b": "\n"}]})
    assert text == (
        "{\n"
        '  "size": 1,\n'
        '  "names": {\n'
        '    "a": []\n'
        "  },\n"
        '  "entries": [\n'
        '    {"a": [1, 2]},\n'
        '    {"b": "\\n"}\n'
        "  ]\n"
        "}\n"
    )


def test_nothing_and_lists_of_nothing() -> None:
    assert written({}, {}) == "{}\n"
    assert written({}, {"entries": []}) == '{\n  "entries": []\n}\n'


def test_items_are_written_as_they_come() -> None:
    file = io.StringIO()

    def items() -> Iterator[int]:
        for number in range(3):
            assert file.getvalue().count("\n    ") == number
            yield number

    with ObjectWriter(file) as writer:
        writer.items("numbers", items())


def test_after_an_error_it_is_not_complete() -> None:
    file = io.StringIO()
    with pytest.raises(ZeroDivisionError), ObjectWriter(file) as writer:
        writer.member("size", 1)
        raise ZeroDivisionError
    with pytest.raises(json.JSONDecodeError):
        json.loads(file.getvalue())
