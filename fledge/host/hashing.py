"""Hashes the blocks of a file with all processors."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NamedTuple

from fledge.tree import block_digests
from fledge.tree.block_digests import BLOCK_SIZE, DIGEST_SIZE, write_digests

MIN_BLOCKS = (32 << 20) // BLOCK_SIZE
"""Blocks for which another process is worth its start."""


class _Part(NamedTuple):
    first: int
    """The first block."""
    blocks: int
    position: int
    """Where its digests go, in bytes."""


def hash_blocks(
    source: int, first: int, count: int, salt: bytes, target: int, position: int
) -> None:
    """Do as `write_digests`, with as many processes as there are processors.

    They are programs of their own, and not forks: this process may have threads.
    """
    parts = max(1, min(len(os.sched_getaffinity(0)), count // MIN_BLOCKS))
    share = -(-count // parts)
    mine, *others = (
        _Part(first + start, min(share, count - start), position + start * DIGEST_SIZE)
        for start in range(0, count, share)
    )
    started: list[tuple[_Part, subprocess.Popen[bytes] | None]] = []
    try:
        for part in others:
            started.append((part, _start(part, source, target, salt)))
        write_digests(source, mine.first, mine.blocks, salt, target, mine.position)
        for part, process in started:
            if process is None or process.wait() != 0:
                write_digests(source, part.first, part.blocks, salt, target, part.position)
    finally:
        for _, process in started:
            if process:
                process.kill()
                process.wait()


def _start(part: _Part, source: int, target: int, salt: bytes) -> subprocess.Popen[bytes] | None:
    """Start a program that hashes a part; None: it cannot be started."""
    numbers = map(str, (source, part.first, part.blocks, target, part.position))
    # Without site-packages and user settings it starts at once.
    command = [sys.executable, "-I", "-S", block_digests.__file__, *numbers, salt.hex()]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds={source, target},
        )
    except (OSError, TypeError):  # where Python is a part of another program, it has no path
        return None
