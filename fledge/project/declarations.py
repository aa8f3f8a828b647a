"""How the annotation of a field declares the type of a value in a TOML file.

    str                 text; a URL with ``extra={"kind": "url"}``; of a form with ``pattern``
    Literal             one of several texts
    tuple[Literal, ...] a list of some of them
    bool                true or false
    int                 a whole number from ``ge`` to ``le``
    Path                a readable file; a folder with ``extra={"kind": "folder"}``
    Digest              a sha256
    tuple[Digest, ...]  a list of them
    Reference           an image

    tuple[tuple[str, str], ...]   a table of texts
    tuple[Secret, ...]            a table of secrets

``extra={"variables": True}``: ``${NAME}`` in the value is a variable of the environment.
``ge``, ``le``, ``pattern``, ``extra``, descriptions and examples come from `msgspec.Meta`.
``| None`` is ignored, because a key that is present always has a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from fledge.oci.builders import Secret
from fledge.oci.reference import Reference
from fledge.project.value_tables import Secrets, Texts
from fledge.project.values import (
    ANY_TEXT,
    MAX_NATURAL,
    Boolean,
    Choice,
    Choices,
    Entries,
    Formed,
    ImageReference,
    InputFile,
    InputFolder,
    Natural,
    Sha256,
    Sha256List,
    Text,
    Url,
    Value,
)
from fledge.tree.digest import Digest


class Declaration(msgspec.Struct, frozen=True):
    """The declaration of a field in its annotation."""

    value: Value
    optional: bool
    """Whether the field can be None."""
    description: str
    extra: Mapping[str, Any]


def declared(name: str, annotation: Any, *, written_by_fledge: bool = False) -> Declaration:
    """Return what the annotation of the field ``name`` declares.

    If several `Meta` are nested, the outermost wins. With ``written_by_fledge``, a digest has only
    one form: bare digits in a field named ``sha256``, ``sha256:HEX`` in others. Raises `TypeError`
    for a type that cannot be written in TOML.
    """
    metas, plain, optional = _unwrap(annotation)
    facts = {
        key: fact
        for meta in metas
        for key in ("description", "examples", "ge", "le", "pattern")
        if (fact := getattr(meta, key)) is not None
    }
    extra = {key: value for meta in metas for key, value in (meta.extra or {}).items()}
    examples = tuple(facts.get("examples", ()))
    value: Value
    if extra.get("kind") == "entries":
        value = Entries(examples=examples, pattern=extra.get("pattern", ANY_TEXT))
    elif get_origin(plain) is Literal:
        value = Choice(examples=examples, options=get_args(plain))
    elif get_origin(plain) is tuple and get_origin(get_args(plain)[0]) is Literal:
        value = Choices(examples=examples, options=get_args(get_args(plain)[0]))
    elif plain is int:
        least, most = facts.get("ge", 0), facts.get("le", MAX_NATURAL)
        value = Natural(examples=examples, least=least, most=most)
    elif plain is Digest:
        prefixed = name != "sha256" if written_by_fledge else None
        value = Sha256(examples=examples, prefixed=prefixed)
    elif plain is str and extra.get("kind") == "url":
        value = Url(examples)
    elif plain is Path and extra.get("kind") == "folder":
        value = InputFolder(examples)
    elif plain is str and "pattern" in facts:
        value = Formed(examples=examples, pattern=facts["pattern"])
    elif plain in _SIMPLE:
        value = _SIMPLE[plain](examples)
    else:
        raise TypeError(f"{name}: {annotation} cannot be written in TOML")
    return Declaration(value, optional, facts.get("description", ""), extra)


_SIMPLE: dict[object, type[Value]] = {
    str: Text,
    bool: Boolean,
    Path: InputFile,
    tuple[Digest, ...]: Sha256List,
    tuple[tuple[str, str], ...]: Texts,
    tuple[Secret, ...]: Secrets,
    frozenset(get_args(Reference)): ImageReference,
}
"""The types that are constructed from examples alone. A union is the set of its members."""


def _unwrap(annotation: Any) -> tuple[list[msgspec.Meta], Any, bool]:
    """Split an annotation into its `Meta`, innermost first, its type, and whether it can be None.

    A union becomes the set of its members.
    """
    if get_origin(annotation) is Annotated:
        inner, *metas = get_args(annotation)
        found, plain, optional = _unwrap(inner)
        return [*found, *metas], plain, optional
    if get_origin(annotation) not in (Union, UnionType):
        return [], annotation, False
    members = frozenset(get_args(annotation))
    optional = type(None) in members
    members -= {type(None)}
    if len(members) > 1:
        return [], members, optional
    found, plain, _ = _unwrap(next(iter(members)))
    return found, plain, optional
