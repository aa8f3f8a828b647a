"""Finds all mistakes in data that should become a struct, where msgspec stops at the first."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from fledge.project.values import MAX_NATURAL, Boolean, Natural, close_match, literal

MAX_SUGGESTED = 20
"""Unknown keys of a table for which a similar one is looked for, because that takes long."""

_KEY = re.compile(r"(\w+) (?:must|needs)\b")
"""What a rule of a struct begins with if it is about one key."""


class Mistake(msgspec.Struct, frozen=True):
    """A wrong, unknown or missing key."""

    keys: tuple[str, ...]
    """The path to the key, or to the table if a rule of the table is broken."""
    table: str
    """The path in words, without a key that the message begins with."""
    problem: str

    @property
    def message(self) -> str:
        """Path and problem: ``resources.cpu_cores: must be …``."""
        return f"{self.table}: {self.problem}" if self.table else self.problem


class Words(msgspec.Struct, frozen=True):
    """How a document is talked about."""

    owner: str
    """Who knows its keys."""
    patterns: Mapping[str, str]
    """What each pattern of a text demands."""
    limits: Mapping[int, str]
    """Why a number has a maximum."""
    more_keys: Collection[str] = ()
    """Keys at the top that are known as well, and are not in the data."""


def find(struct: type[msgspec.Struct], data: object, words: Words) -> Iterator[Mistake]:
    """Yield the mistakes in data parsed from JSON or TOML, in the order of the struct's fields.

    The rules of a struct (its ``__post_init__``) are only looked at if its fields are right.
    """
    return _Checker(words).check(inspect.type_info(struct), data, (), "")


class _Checker:
    def __init__(self, words: Words) -> None:
        self.words = words

    def check(
        self, kind: inspect.Type, value: Any, keys: tuple[str, ...], path: str
    ) -> Iterator[Mistake]:
        """Yield the mistakes in a value. ``path`` is that of its key."""
        while isinstance(kind, inspect.Metadata | inspect.UnionType):
            if isinstance(kind, inspect.Metadata):
                kind = kind.type
            elif value is None and kind.includes_none:
                return
            else:
                kind = next(each for each in kind.types if not isinstance(each, inspect.NoneType))
        if isinstance(kind, inspect.StructType):
            yield from self._struct(kind, value, keys, path)
        elif isinstance(kind, inspect.DictType):
            yield from self._dict(kind, value, keys, path)
        elif isinstance(kind, inspect.ListType):
            yield from self._list(kind, value, keys, path)
        elif problem := self._leaf(kind, value):
            yield Mistake(keys, path, problem)

    def _struct(
        self, kind: inspect.StructType, value: Any, keys: tuple[str, ...], path: str
    ) -> Iterator[Mistake]:
        if not isinstance(value, dict):
            yield Mistake(keys, path, "must be a table")
            return
        fields = {each.encode_name: each for each in kind.fields}
        known = {*fields, *(() if keys else self.words.more_keys)}
        wrong = False
        for number, name in enumerate(each for each in value if each not in fields):
            close = close_match(name, known) if number < MAX_SUGGESTED else None
            remedy = f": did you mean {close}?" if close else ""
            wrong = True
            yield Mistake((*keys, name), path, f"{self.words.owner} knows no key {name}{remedy}")
        for name, field in fields.items():
            if name in value:
                for each in self.check(field.type, value[name], (*keys, name), _join(path, name)):
                    wrong = True
                    yield each
            elif field.required:
                wrong = True
                yield Mistake((*keys, name), path, f"{name} is missing")
        if wrong:
            return
        try:
            msgspec.convert(value, kind.cls)
        except msgspec.ValidationError as error:
            about = _KEY.match(str(error))
            yield Mistake((*keys, about[1]) if about else keys, path, str(error))

    def _dict(
        self, kind: inspect.DictType, value: Any, keys: tuple[str, ...], path: str
    ) -> Iterator[Mistake]:
        if not isinstance(value, dict):
            yield Mistake(keys, path, "must be a table")
            return
        for name, each in value.items():
            yield from self.check(kind.value_type, each, (*keys, name), _join(path, name))

    def _list(
        self, kind: inspect.ListType, value: Any, keys: tuple[str, ...], path: str
    ) -> Iterator[Mistake]:
        if not isinstance(value, list):
            yield Mistake(keys, path, "must be a list in brackets")
        elif not value and kind.min_length:
            yield Mistake(keys, path, "must not be empty")
        else:
            for index, each in enumerate(value):
                place = f"{path}[{index}]"
                yield from self.check(kind.item_type, each, (*keys, str(index)), place)

    def _leaf(self, kind: inspect.Type, value: Any) -> str | None:
        """Say what is wrong with a text, number or boolean; None if nothing is."""
        if isinstance(kind, inspect.BoolType):
            return _problem(Boolean().read, value)
        if isinstance(kind, inspect.IntType):
            return self._number(kind, value)
        if not isinstance(value, str):
            return "must be text in quotes"
        if isinstance(kind, inspect.LiteralType):
            return self._choice(kind, value)
        if isinstance(kind, inspect.StrType) and kind.pattern:
            return None if re.search(kind.pattern, value) else self.words.patterns[kind.pattern]
        return "must not be empty" if getattr(kind, "min_length", 0) and not value else None

    def _number(self, kind: inspect.IntType, value: Any) -> str | None:
        most = MAX_NATURAL if kind.le is None else kind.le
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if is_number and value > most and most in self.words.limits:
            return f"must be at most {most}, {self.words.limits[most]}"
        return _problem(Natural(least=kind.ge or 0, most=most).read, value)

    def _choice(self, kind: inspect.LiteralType, value: str) -> str | None:
        if value in kind.values:
            return None
        options = [each for each in kind.values if isinstance(each, str)]
        close = close_match(value, options)
        listed = " or ".join(map(literal, options))
        remedy = f"did you mean {literal(close)}?" if close else f"must be {listed}"
        return f"{self.words.owner} knows no {value}: {remedy}"


def _problem(read: Callable[[object, Path], object], value: object) -> str | None:
    try:
        read(value, Path())
    except ValueError as error:
        return str(error)
    return None


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
