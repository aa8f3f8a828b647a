"""Digests as values."""

from __future__ import annotations

import hashlib

import pytest

from fledge.errors import MalformedError
from fledge.tree.digest import Digest

HEX = hashlib.sha256(b"hello").hexdigest()


def test_its_forms() -> None:
    digest = Digest.of(b"hello")
    assert digest.hex == HEX
    assert str(digest) == f"sha256:{HEX}"
    assert digest.short == HEX[:12]
    assert Digest.parse(str(digest)) == Digest.from_hex(HEX) == digest
    assert {digest: 1}[Digest(HEX)] == 1
    assert sorted([Digest("b" * 64), Digest("a" * 64)])[0].hex == "a" * 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEX,
        "sha256:",
        f"sha512:{HEX * 2}",
        f"sha256:{HEX}0",
        f"sha256:{HEX.upper()}",
        "sha256:../x",
    ],
)
def test_what_is_not_one(text: str) -> None:
    with pytest.raises(MalformedError, match="not a sha256 digest"):
        Digest.parse(text)


@pytest.mark.parametrize("text", ["", HEX[1:], HEX + "\n", HEX.upper(), "g" * 64])
def test_what_is_not_its_digits(text: str) -> None:
    with pytest.raises(MalformedError, match="not a sha256 digest"):
        Digest.from_hex(text)
