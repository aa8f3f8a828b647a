import hashlib
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import deflate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.cpio import deflate_stream, gzip
from tests.support import golden
from tests.support.payloads import MEBIBYTE, noise, text

# The default deadline of an example is too short on a busy machine.
few = settings(deadline=None, max_examples=60)

# Incompressible, with very short codes, and repetitive.
DATA = st.one_of(
    st.binary(max_size=300),
    st.lists(st.sampled_from(b"ab"), max_size=300).map(bytes),
    st.lists(st.tuples(st.binary(min_size=1, max_size=4), st.integers(1, 300)), max_size=20).map(
        lambda runs: b"".join(piece * times for piece, times in runs)
    ),
)


def compress(pieces: Iterable[bytes]) -> bytes:
    return b"".join(gzip.compress(pieces))


def inflate(data: bytes) -> bytes:
    """Return the content of a gzip file of one member; zlib verifies checksum and size."""
    inflater = zlib.decompressobj(31)
    output = inflater.decompress(data)
    assert inflater.eof
    assert inflater.unused_data == b""
    return output


@pytest.mark.parametrize("make", [noise, text, bytes])
@pytest.mark.parametrize(
    "size",
    [
        *(0, 1, 2, 0xFFFE, 0xFFFF, 0x10000, 0x10001, 2 * 0xFFFF, 2 * 0xFFFF + 1),
        *(gzip.CHUNK_SIZE - 1, gzip.CHUNK_SIZE, gzip.CHUNK_SIZE + 1, 2 * gzip.CHUNK_SIZE + 1),
    ],
)
@pytest.mark.slow
def test_sizes(make: Callable[[int], bytes], size: int) -> None:
    data = make(size)
    assert inflate(compress([data])) == data


@pytest.mark.slow
@few
@given(st.lists(DATA, max_size=5), st.integers(30, 400))
def test_many_small_chunks(pieces: list[bytes], chunk_size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gzip, "CHUNK_SIZE", chunk_size)
        output = compress(pieces)
        assert compress([b"".join(pieces)]) == output
    assert inflate(output) == b"".join(pieces)


@pytest.mark.slow
def test_cuts_make_no_difference() -> None:
    data = text(gzip.CHUNK_SIZE + 5)
    whole = compress([data])
    for cut in (100, gzip.CHUNK_SIZE - 1, gzip.CHUNK_SIZE, gzip.CHUNK_SIZE + 1):
        pieces = [data[start : start + cut] for start in range(0, len(data), cut)]
        assert compress([b"", *pieces, b""]) == whole


@pytest.mark.slow
@pytest.mark.parametrize("cpus", [None, 1, 2, 8])
def test_bytes_are_the_same_everywhere(cpus: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A different hash means a different libdeflate, which changes every artifact."""
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    output = compress([text(2 * MEBIBYTE), noise(MEBIBYTE // 2), bytes(MEBIBYTE // 2)])
    assert hashlib.sha256(output).hexdigest() == golden.GZIP


def test_header_and_trailer() -> None:
    output = compress([b"data"])
    assert output[:10] == bytes.fromhex("1f8b 08 00 00000000 02 ff")
    assert output[-8:] == struct.pack("<II", zlib.crc32(b"data"), 4)


def test_noise_hardly_grows() -> None:
    assert len(compress([noise(MEBIBYTE)])) < MEBIBYTE + 200


def test_error_of_the_source_comes_through() -> None:
    def pieces() -> Iterator[bytes]:
        yield bytes(3 * gzip.CHUNK_SIZE)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        compress(pieces())


@pytest.mark.real
def test_gzip_accepts_it() -> None:
    command = shutil.which("gzip")
    if command is None:
        pytest.skip("no gzip: run scripts/test-tools")
    for data in (b"", text(3 * MEBIBYTE) + noise(MEBIBYTE)):
        output = compress([data])
        subprocess.run([command, "-t"], input=output, check=True)
        found = subprocess.run([command, "-dc"], input=output, check=True, stdout=subprocess.PIPE)
        assert found.stdout == data


# VmHWM, because ru_maxrss may be that of the parent process.
MEMORY = """
import os, sys
from pathlib import Path
from fledge.cpio import deflate_stream, gzip

os.cpu_count = lambda: 64
print(sum(map(len, gzip.compress(os.urandom(1 << 20) for _ in range(300)))))
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.real
def test_memory_is_bounded() -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc/self/status")
    root = Path(gzip.__file__).parents[2]
    command = [sys.executable, "-c", MEMORY]
    process = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE)
    size, kibibytes = map(int, process.stdout.split())
    assert size > 300 * MEBIBYTE
    assert kibibytes < 150 * 1024


class Bits:
    """Decodes a DEFLATE stream bit by bit, as RFC 1951 describes it."""

    def __init__(self, stream: bytes) -> None:
        self.stream = stream
        self.position = 0

    def number(self, size: int) -> int:
        return sum(self._bit() << place for place in range(size))

    def symbol(self, codes: dict[tuple[int, int], int]) -> int:
        size = code = 0
        while (size, code) not in codes:
            assert size < 15
            size, code = size + 1, code << 1 | self._bit()
        return codes[size, code]

    def skip(self, size: int) -> None:
        self.position += size

    def _bit(self) -> int:
        bit = self.stream[self.position // 8] >> self.position % 8 & 1
        self.position += 1
        return bit


def huffman_codes(sizes: Sequence[int]) -> dict[tuple[int, int], int]:
    """Return the symbols by size and value of their codes (RFC 1951, 3.2.2)."""
    codes: dict[tuple[int, int], int] = {}
    code = 0
    for size in range(1, 16):
        for symbol, of_symbol in enumerate(sizes):
            if of_symbol == size:
                codes[size, code] = symbol
                code += 1
        code <<= 1
    return codes


ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
FIXED = huffman_codes([8] * 144 + [9] * 112 + [7] * 24 + [8] * 8), huffman_codes([5] * 30)


def dynamic_codes(bits: Bits) -> tuple[dict[tuple[int, int], int], dict[tuple[int, int], int]]:
    """Read the codes of literals and lengths, and of distances (RFC 1951, 3.2.7)."""
    literals, distances, count = bits.number(5) + 257, bits.number(5) + 1, bits.number(4) + 4
    given = dict(zip(ORDER, [bits.number(3) for _ in range(count)], strict=False))
    codes = huffman_codes([given.get(symbol, 0) for symbol in range(19)])
    sizes: list[int] = []
    while len(sizes) < literals + distances:
        symbol = bits.symbol(codes)
        if symbol < 16:
            sizes.append(symbol)
        elif symbol == 16:
            sizes += sizes[-1:] * (3 + bits.number(2))
        else:
            sizes += [0] * (3 + bits.number(3) if symbol == 17 else 11 + bits.number(7))
    return huffman_codes(sizes[:literals]), huffman_codes(sizes[literals:])


def last_block(stream: bytes) -> tuple[int, int]:
    """Find the result of `deflate_stream.last_block` by decoding every code."""
    bits = Bits(stream)
    while True:
        start = bits.position
        final = bits.number(1)
        kind = bits.number(2)
        if kind == 0:
            bits.skip(-bits.position % 8)
            size = bits.number(16)
            assert bits.number(16) == size ^ 0xFFFF
            bits.skip(size * 8)
        else:
            literals, distances = FIXED if kind == 1 else dynamic_codes(bits)
            while (symbol := bits.symbol(literals)) != 256:
                if symbol > 256:
                    bits.skip((symbol - 261) // 4 if 265 <= symbol < 285 else 0)
                    bits.skip(max(bits.symbol(distances) // 2 - 1, 0))
        if final:
            return start, bits.position


@few
@given(DATA, st.integers(0, 12))
def test_last_block(data: bytes, level: int) -> None:
    stream = bytes(deflate.deflate_compress(data, level))
    assert deflate_stream.last_block(stream) == last_block(stream)


@pytest.mark.parametrize("level", range(13))
def test_last_of_many_blocks(level: int) -> None:
    stream = bytes(deflate.deflate_compress(noise(7_000) + text(12_000) + bytes(66_000), level))
    start, end = last_block(stream)
    assert start > 0
    assert deflate_stream.last_block(stream) == (start, end)


def test_last_byte_that_can_be_read_in_two_ways() -> None:
    """Output of libdeflate at level 1. Other values of the last five bits of the block also end it
    after the same output."""
    stream = bytes.fromhex("258a810d00000cc16ed5ff8f101a32d620400266c8befb7d7a1b73f1aa054abcf82d")
    assert deflate_stream.last_block(stream) == last_block(stream) == (0, 270)


def test_the_worked_example() -> None:
    stream = bytes(deflate.deflate_compress(b"a" * 20, 9))
    assert stream == bytes.fromhex("4b 4c c4 04 00")
    assert deflate_stream.last_block(stream) == (0, 39)
    continued = bytes.fromhex("4a 4c c4 04 00 00 00 00 ff ff")
    assert deflate_stream.continuable(stream) == continued


@few
@given(st.lists(DATA, max_size=4), st.integers(1, 12))
def test_joined_streams_hold_what_one_compressor_would_write(
    pieces: list[bytes], level: int
) -> None:
    """The plain way: zlib compresses piece by piece, with a flush after each."""
    plain = zlib.compressobj(9, wbits=-15)
    flushed = b"".join(plain.compress(each) + plain.flush(zlib.Z_SYNC_FLUSH) for each in pieces)
    joined = b"".join(
        deflate_stream.continuable(bytes(deflate.deflate_compress(each, level))) for each in pieces
    )
    for stream in (flushed, joined):
        inflater = zlib.decompressobj(-15)
        assert inflater.decompress(stream + gzip.EMPTY_FINAL_BLOCK) == b"".join(pieces)
        assert inflater.eof
