"""zstd and LZ4 as the kernel takes them, the same bytes on every machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from fledge.cpio import gzip, lz4, zstd
from fledge.tree.compression import LZ4_BLOCK_SIZE, LZ4_MAGIC, zstd_window
from tests.support import golden
from tests.support.payloads import MEBIBYTE, noise, text

Codec = Callable[..., Iterator[bytes]]

CODECS = {"zstd": zstd.compress, "lz4": lz4.compress}

every_codec = pytest.mark.parametrize("name", CODECS)


def compress(name: str, pieces: Iterable[bytes], **options: int) -> bytes:
    return b"".join(CODECS[name](pieces, **options))


# More than one block of LZ4, and more than one job of zstd.
SAMPLE = [text(9 * MEBIBYTE), noise(MEBIBYTE // 2), bytes(MEBIBYTE // 2), text(9 * MEBIBYTE)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("cpus", [None, 1, 2, 8])
@every_codec
def test_bytes_are_the_same_everywhere(
    name: str, cpus: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A different hash means a different library, which changes artifacts."""
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    assert hashlib.sha256(compress(name, SAMPLE)).hexdigest() == golden.CODECS[name]


@pytest.mark.slow
@every_codec
def test_cuts_make_no_difference(name: str) -> None:
    data = b"".join(SAMPLE)
    for cut in (100_001, LZ4_BLOCK_SIZE, LZ4_BLOCK_SIZE + 1):
        pieces = [data[start : start + cut] for start in range(0, len(data), cut)]
        output = compress(name, [b"", *pieces, b""])
        assert hashlib.sha256(output).hexdigest() == golden.CODECS[name]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "levels"), [("zstd", (1, 9, 19)), ("lz4", (1, 9, 12))])
def test_a_higher_level_is_smaller(name: str, levels: tuple[int, ...]) -> None:
    sizes = [len(compress(name, [text(MEBIBYTE)], level=level)) for level in levels]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize(("level", "flag"), [(1, 4), (2, 0), (8, 0), (9, 2), (12, 2)])
def test_gzip_tells_its_level(level: int, flag: int) -> None:
    assert b"".join(gzip.compress([b"data"], level))[8] == flag


@pytest.mark.slow
@pytest.mark.parametrize("level", [1, 9, 19])
def test_the_kernel_needs_little_memory_for_the_window(level: int) -> None:
    assert zstd_window(compress("zstd", [text(MEBIBYTE)], level=level)[:18]) <= 8 * MEBIBYTE


def test_a_legacy_frame() -> None:
    assert compress("lz4", []) == LZ4_MAGIC
    output = compress("lz4", [bytes(LZ4_BLOCK_SIZE + 1)])
    size = int.from_bytes(output[4:8], "little")
    assert output[8 + size :] == b"\x02\0\0\0" + b"\x10\0"  # one literal byte


@every_codec
def test_error_of_the_source_comes_through(name: str) -> None:
    def pieces() -> Iterator[bytes]:
        yield bytes(9 * MEBIBYTE)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        compress(name, pieces())


@pytest.mark.real
@every_codec
def test_its_program_accepts_it(name: str) -> None:
    command = shutil.which(name)
    if command is None:
        pytest.skip(f"no {name}: run scripts/test-tools")
    for data in (b"", text(3 * MEBIBYTE) + noise(MEBIBYTE), bytes(17 * MEBIBYTE)):
        output = compress(name, [data])
        found = subprocess.run([command, "-dc"], input=output, check=True, stdout=subprocess.PIPE)
        assert found.stdout == data


# VmHWM, because ru_maxrss may be that of the parent process.
MEMORY = """
import os, sys
from pathlib import Path
from fledge.cpio import {name}

os.cpu_count = lambda: 2
count = int(sys.argv[1])
print(sum(map(len, {name}.compress(os.urandom(1 << 20) for _ in range(count)))))
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.real
@every_codec
def test_memory_does_not_grow_with_size(name: str) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc/self/status")
    root = Path(gzip.__file__).parents[2]
    peaks = []
    for count in (150, 450):
        command = [sys.executable, "-c", MEMORY.format(name=name), str(count)]
        process = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE)
        size, kibibytes = map(int, process.stdout.split())
        assert size > count * MEBIBYTE
        peaks.append(kibibytes)
    assert peaks[1] < peaks[0] + 32 * 1024
