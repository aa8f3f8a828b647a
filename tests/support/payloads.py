"""Data to compress: noise, and text with some frequent words."""

import hashlib
from functools import cache
from operator import and_

MEBIBYTE = 1 << 20


def noise(size: int) -> bytes:
    return hashlib.shake_128(b"noise").digest(size)


@cache
def text(size: int) -> bytes:
    """Words, some of them frequent."""
    words = [hashlib.shake_128(b"%d" % n).hexdigest(2 + n % 8).encode() + b" " for n in range(256)]
    picks = noise(size // 2 + 4)
    return b"".join(words[n] for n in map(and_, picks[::2], picks[1::2]))[:size]
