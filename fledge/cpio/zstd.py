"""Compresses with zstd to one frame, reproducibly and on several cores (RFC 8878).

libzstd cuts the input into jobs of a fixed size, and each job refers to the end of the one before.
So the number of threads does not affect the output, as long as it is at least one: without any,
libzstd compresses in another way.

zstandard brings a libzstd of its own for every Python. pyzstd, which reads layers, uses that of
Python from 3.14 on, so its output would depend on the machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import zstandard

from fledge.cpio import chunks

LEVEL = 9
"""The default level, of 1 to 19. Higher ones take windows of more than 8 MiB, which the kernel has
to allocate to unpack."""

JOB_SIZE = 4 << 20
"""Bytes in a job. Larger jobs hardly improve compression, and threads hold several of them."""

MAX_THREADS = 4
"""At level 19 each thread takes about 100 MiB."""


def compress(pieces: Iterable[bytes], level: int = LEVEL) -> Iterator[bytes]:
    """Compress the concatenation of the pieces to one frame, with a checksum."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        threads=chunks.thread_count(MAX_THREADS),
        job_size=JOB_SIZE,
        write_checksum=True,
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    for piece in pieces:
        yield compressor.compress(piece)
    yield compressor.flush()
