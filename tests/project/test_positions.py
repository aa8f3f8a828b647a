"""Positions of keys in TOML, against known lines and against tomli."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from fledge.project.positions import DEPTH, Position, positions

VALUES = [
    *("1", "-0.5e3", "true", "inf", "1979-05-27 07:32:00.5-07:00", "07:32:00"),
    *('"a # b = [c]"', '"\\"]\\\\"', "'#\\'", '""', "''"),
    *('"""\n]"" = 1\n\\"""x\\\\"""', '""""""', '"""a"""""', "'''\n[x]\na = 1\n'''", "'''''a'''''"),
    *("[]", "[ # ]\n 1,\n [2, '],'],\n]", "[{a = 1, b = [\n]}, {}]", "{}"),
]


class Text:
    """A growing TOML text, and the positions of its keys."""

    def __init__(self) -> None:
        self.text = ""
        self.found: dict[tuple[str, ...], Position] = {}

    def here(self) -> Position:
        lines = self.text.split("\n")
        return Position(len(lines), len(lines[-1]) + 1)

    def note(self, table: tuple[str, ...], keys: list[str]) -> tuple[str, ...]:
        for depth in range(1, len(keys) + 1):
            self.found.setdefault((*table, *keys[:depth]), self.here())
        return (*table, *keys)


def spelled(draw: st.DrawFn, keys: list[str]) -> str:
    """Return dotted keys, each in a form that TOML allows."""
    parts = []
    for key in keys:
        ways = [json.dumps(key), "".join(f"\\U{ord(c):08x}" for c in key).join('""')]
        if key and key.isascii() and key.replace("-", "").isalnum():
            ways.append(key)
        if "'" not in key and key.isprintable():
            ways.append(f"'{key}'")
        parts.append(draw(st.sampled_from(ways)))
    return draw(st.sampled_from([".", " . ", ".\t"])).join(parts)


@st.composite
def texts(draw: st.DrawFn) -> Text:
    """A valid text: statements, then tables and arrays of tables with statements."""
    text = Text()
    names = st.sampled_from(["a", "b-1", "", "é", "x.y", "=#", '"', "'", "]", "\t"])
    used = set[str]()

    def fresh(most: int) -> list[str]:
        """Keys that are not used yet, so that no table is defined twice."""
        first = f"{draw(names)}{len(used)}"
        used.add(first)
        return [first, *draw(st.lists(names, max_size=most))]

    def value(table: tuple[str, ...], depth: int) -> None:
        if depth < 3 and draw(st.booleans()):
            text.text += "{ "
            for number in range(draw(st.integers(0, 3))):
                text.text += ", " if number else ""
                statement(table, depth + 1)
            text.text += " }"
        else:
            text.text += draw(st.sampled_from(VALUES))

    def statement(table: tuple[str, ...], depth: int) -> None:
        keys = fresh(2)
        named = text.note(table, keys)
        text.text += spelled(draw, keys) + draw(st.sampled_from(["=", " = "]))
        value(named, depth)

    def statements(table: tuple[str, ...]) -> None:
        for _ in range(draw(st.integers(0, 3))):
            text.text += draw(st.sampled_from(["", "  ", "\n\n", "# [c]\n", "#'''\r\n"]))
            statement(table, 0)
            text.text += draw(st.sampled_from(["\n", "\r\n", ' # "\n']))

    statements(())
    for _ in range(draw(st.integers(0, 3))):
        array = draw(st.booleans())
        text.text += ("[[" if array else "[") + draw(st.sampled_from(["", " "]))
        keys = fresh(2)
        table = text.note((), keys)
        text.text += spelled(draw, keys) + ("]]" if array else "]") + " # x\n"
        statements(table)
    return text


@pytest.mark.slow
@given(texts())
def test_every_key_of_any_text(text: Text) -> None:
    tomli.loads(text.text)
    found = positions(text.text)
    expected = {keys: place for keys, place in text.found.items() if len(keys) <= DEPTH}
    assert {keys: found.get(keys) for keys in expected} == expected
    assert tables(tomli.loads(text.text), ()) <= found.keys()


def tables(data: Mapping[str, object], prefix: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Return the keys of all values, down to the maximum depth."""
    found = set()
    for key, value in data.items():
        keys = (*prefix, key)
        if len(keys) <= DEPTH:
            found.add(keys)
            found |= tables(value, keys) if isinstance(value, dict) else set()
    return found


@pytest.mark.parametrize(
    ("text", "keys", "place"),
    [
        ("\ufeffa = 1".lstrip("\ufeff"), ("a",), (1, 1)),
        ("[[a]]\nb = 1\n[[a]]\nb = 2\nc = 3", ("a", "c"), (5, 1)),
        ("[x.a]\n[x]\nb = 1", ("x",), (1, 2)),
        ("[x.a]\n[x]\nb = 1", ("x", "b"), (3, 1)),
        ('"\\u0061" = """\n\n"""\nb = 1', ("a",), (1, 1)),
        ('"\\u0061" = """\n\n"""\nb = 1', ("b",), (4, 1)),
    ],
)
def test_place(text: str, keys: tuple[str, ...], place: tuple[int, int]) -> None:
    assert positions(text)[keys] == place


@pytest.mark.parametrize(
    "text",
    [
        "a" + ".a" * 200 + " = 1\nb = 1",
        "[a" + ".a" * 200 + "]\n[b]",
        "a = " + "[" * 90 + "]" * 90 + "\nb = 1",
        "a = '''" + "[\n" * 100_000 + "'''\nb = 1",
        'a = """' + '""\\\\ x' * 50_000 + '"""\nb = 1',
    ],
    ids=len,
)
def test_long_and_deep_texts(text: str) -> None:
    tomli.loads(text)
    found = positions(text)
    assert found["b",].line == text.count("\n") + 1
    assert max(map(len, found)) <= DEPTH
