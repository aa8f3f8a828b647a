"""Hashes the blocks of a file with all processors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from fledge.tree import block_digests
from fledge.tree.block_digests import BLOCK_SIZE, DIGEST_SIZE, write_digests

MIN_BLOCKS = (32 << 20) // BLOCK_SIZE
"""Blocks for which another process is worth its start."""


def hash_blocks(
    source: int, first: int, count: int, salt: bytes, target: int, position: int
) -> None:
    """Do as `write_digests`, with as many processes as there are processors.

    They are programs of their own, and not forks: this process may have threads.
    """
    parts = max(1, min(len(os.sched_getaffinity(0)), count // MIN_BLOCKS))
    share = -(-count // parts)
    started: list[tuple[subprocess.Popen[bytes], tuple[int, int, int]]] = []
    try:
        for start in range(share, count, share):
            work = first + start, min(share, count - start), position + start * DIGEST_SIZE
            started.append((_start(source, target, work, salt), work))
        write_digests(source, first, min(share, count), salt, target, position)
        for process, (begin, blocks, place) in started:
            if process.wait() != 0:
                write_digests(source, begin, blocks, salt, target, place)
    finally:
        for process, _ in started:
            process.kill()
            process.wait()


def _start(source: int, target: int, work: Sequence[int], salt: bytes) -> subprocess.Popen[bytes]:
    begin, blocks, place = work
    numbers = map(str, (source, begin, blocks, target, place))
    return subprocess.Popen(
        # Without site-packages and user settings it starts at once.
        [sys.executable, "-I", "-S", block_digests.__file__, *numbers, salt.hex()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds={source, target},
    )
