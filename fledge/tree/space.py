"""The options that decide how much free space a filesystem image has."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

MIB = 1 << 20
"""Bytes in a MiB."""

MAX_BUFFER_MB = 1 << 24
"""Maximum of ``size_buffer_mb`` in MiB: 16 TiB, the largest ext4 with blocks of 4 KiB and 32-bit
block numbers."""

SizeBuffer = Annotated[
    int,
    Meta(
        ge=0,
        le=MAX_BUFFER_MB,
        description="Free space, in MiB: what any user can write once the image is mounted."
        " 0: a quarter of the content, from 64 to 1024.",
        examples=[512],
    ),
]
"""The option ``size_buffer_mb`` of every filesystem."""

AlignSize = Annotated[
    int,
    Meta(
        ge=0,
        le=1024,
        description="The size of the image becomes a multiple of so many MiB, as some hypervisors"
        " want it. 0: of 4 KiB.",
        examples=[2],
    ),
]
"""The option ``align_mb`` of every filesystem."""

Preallocate = Annotated[
    bool,
    Meta(
        description="Allocate the whole image, instead of leaving free space as holes.",
        examples=[True],
    ),
]
"""The option ``preallocate`` of every filesystem."""


def free_space(size_buffer_mb: int, content_size: int) -> int:
    """Return the bytes that can be written to the mounted image: ``size_buffer_mb`` MiB.

    If it is 0, a quarter of ``content_size`` (in bytes), but at least 64 MiB and at most 1 GiB.
    """
    if size_buffer_mb:
        return size_buffer_mb * MIB
    return min(max(content_size // 4, 64 * MIB), 1024 * MIB)
