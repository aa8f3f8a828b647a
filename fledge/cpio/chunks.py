"""Compresses a stream in chunks of a fixed size on all cores, in bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

MAX_THREADS = 8
"""More threads would only take more memory: each holds a chunk."""


def thread_count(maximum: int = MAX_THREADS) -> int:
    """Return how many threads to use on this machine. No output may depend on it."""
    return min(os.cpu_count() or 1, maximum)


def split(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Split the concatenation of the pieces into chunks of ``size`` bytes; the last may have less.

    No pieces give no chunk.
    """
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        while len(buffer) >= size:
            yield bytes(buffer[:size])
            del buffer[:size]
    if buffer:
        yield bytes(buffer)


def compress_each(chunks: Iterable[bytes], compress: Callable[[bytes], bytes]) -> Iterator[bytes]:
    """Yield what ``compress`` makes of each chunk, in the order of the chunks."""
    threads = thread_count()
    pending: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for chunk in chunks:
            pending.append(pool.submit(compress, chunk))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
