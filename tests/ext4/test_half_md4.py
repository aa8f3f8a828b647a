"""The hash of names in directories, against debugfs and a plain version."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.ext4 import half_md4 as module
from fledge.ext4.half_md4 import half_md4

SEED = bytes.fromhex("a230415ee3b64be69f11dffe843336d3")

ROUNDS = (
    (0, (3, 7, 11, 19), (0, 1, 2, 3, 4, 5, 6, 7)),
    (0x5A827999, (3, 5, 9, 13), (1, 3, 5, 7, 0, 2, 4, 6)),
    (0x6ED9EBA1, (3, 9, 11, 15), (3, 7, 2, 6, 1, 5, 0, 4)),
)
"""The added constant, the rotation of each step, and the order of the words."""

FULL_WORD = 0xFFFFFFFF


def mixed(number: int, x: int, y: int, z: int) -> int:
    """The function of a round: choose, majority, or parity of each bit."""
    if number == 0:
        return (x & y) | (~x & z & FULL_WORD)
    if number == 1:
        return (x & y) | (x & z) | (y & z)
    return x ^ y ^ z


def plain(name: bytes, seed: bytes) -> tuple[int, int]:
    """Compute the hash of one name, step by step."""
    state = list(struct.unpack("<4I", seed))
    for start in range(0, len(name), 32):
        words = padded_words(name[start:])
        a, b, c, d = state
        for number, (constant, rotations, order) in enumerate(ROUNDS):
            for step, position in enumerate(order):
                total = a + mixed(number, b, c, d) + words[position] + constant
                shift = rotations[step % 4]
                total &= FULL_WORD
                a, b, c, d = d, (total << shift | total >> (32 - shift)) & FULL_WORD, b, c
        state = [(old + new) & FULL_WORD for old, new in zip(state, (a, b, c, d), strict=True)]
    major = state[1] & ~1
    return (0xFFFFFFFC if major == 0xFFFFFFFE else major), state[2]


def padded_words(text: bytes) -> list[int]:
    """Return eight words: each takes bytes from the right, padded with the length."""
    length = len(text)
    words = []
    for start in range(0, 32, 4):
        word = int.from_bytes(bytes([length & 0xFF]) * 4, "big")
        for byte in text[start : start + 4]:
            word = (word << 8 | byte) & FULL_WORD
        words.append(word)
    return words


@given(
    names=st.lists(st.binary(min_size=1, max_size=255), max_size=12),
    seed=st.binary(min_size=16, max_size=16),
)
def test_names_side_by_side_have_the_hashes_that_each_has_alone(
    names: list[bytes], seed: bytes
) -> None:
    assert half_md4(names, seed) == {name: plain(name, seed) for name in names}


def test_more_names_than_lanes() -> None:
    names = [b"%d" % number for number in range(2100)]
    assert half_md4(names, SEED) == {name: plain(name, SEED) for name in names}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"a", (0x51FC5C6C, 0x057F555D)),
        (b"hello_world", (0xF5281868, 0x37716FA1)),
        (b"a" * 49 + b"b", (0xA0F1B106, 0x1E7CE0B5)),
    ],
)
def test_hashes_are_those_of_debugfs(name: bytes, expected: tuple[int, int]) -> None:
    others = [b"%0*d" % (length, length) for length in range(1, 256)]
    assert half_md4([*others, name], SEED)[name] == plain(name, SEED) == expected


def test_no_name_has_the_hash_of_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    [(even, minor)] = half_md4([b"a"], SEED).values()
    monkeypatch.setattr(module, "END_OF_DIRECTORY", even)
    assert half_md4([b"a"], SEED) == {b"a": (even - 2, minor)}


def test_the_example() -> None:
    lanes, mask = 0x00000000_FFFFFFFF_00000000_00000005, 0x00000000_FFFFFFFF_00000000_FFFFFFFF
    total = lanes + 0x00000000_00000001_00000000_00000001
    assert (total, total & mask) == (0x00000001_00000000_00000000_00000006, 6)
    assert lanes << 3 == 0x00000007_FFFFFFF8_00000000_00000028
    assert lanes >> 29 == 0x00000000_00000007_FFFFFFF8_00000000
    assert (lanes << 3 | lanes >> 29) & mask == 0x00000000_FFFFFFFF_00000000_00000028
