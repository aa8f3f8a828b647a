"""Decompression: what data is, and how much memory it may take."""

import bz2
import gzip
import lzma
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator

import pytest
import pyzstd
from hypothesis import given
from hypothesis import strategies as st

from fledge.errors import CorruptError
from fledge.tree.compression import find_decompression, zstd_frames
from tests.support.compressed import zstd_frame

CONTENT = b"content " * 1000
ONE_MIB, LARGEST = 10 << 3, 17 << 3
"""Descriptors of windows."""


def decompressed(blob: bytes, step: int = 1 << 20) -> bytes:
    decompression = find_decompression(blob)
    assert decompression
    return b"".join(decompression(blob[at : at + step] for at in range(0, len(blob), step)))


@pytest.mark.slow
@pytest.mark.parametrize("compress", [gzip.compress, pyzstd.compress, lzma.compress, bz2.compress])
@given(parts=st.lists(st.binary(max_size=99), min_size=1, max_size=4), step=st.integers(1, 40))
def test_any_parts_in_any_pieces(
    compress: Callable[[bytes], bytes], parts: list[bytes], step: int
) -> None:
    assert decompressed(b"".join(map(compress, parts)), step) == b"".join(parts)


@pytest.mark.parametrize(
    "start", [b"", b"BZh9/file", b"BZh01AY&SY", b"etc/", b"\xfd7zXZ1", b"]", b"LZIP", b"PK"]
)
def test_what_is_not_compressed(start: bytes) -> None:
    assert find_decompression(start.ljust(18, b"\0")) is None


@pytest.mark.parametrize("program", ["compress", "lz4", "lzip", "lzma", "lzop", "zip"])
def test_what_fledge_does_not_read_is_told_as_what_it_is(program: str) -> None:
    blob = {
        "compress": b"\x1f\x9d\x90",
        "lz4": b"\x04\x22\x4d\x18",
        "lzip": b"LZIP\1",
        "lzma": lzma.compress(CONTENT, format=lzma.FORMAT_ALONE),
        "lzop": b"\x89LZO\0\r\n\x1a\n",
        "zip": b"PK\3\4",
    }[program]
    with pytest.raises(CorruptError, match=f"compressed by {program}, which") as caught:
        decompressed(blob.ljust(99, b"x"))
    assert caught.value.hint.startswith("It is not damaged")


@pytest.mark.parametrize("window", [13 << 3 | 1, LARGEST - 1, LARGEST])
def test_large_windows_are_taken(window: int) -> None:
    blob = zstd_frame(CONTENT, ONE_MIB) + zstd_frame(CONTENT, window) + pyzstd.compress(CONTENT)
    assert decompressed(blob) == CONTENT * 3
    assert decompressed(blob, step=1) == CONTENT * 3


def test_a_long_window_of_the_zstd_command() -> None:
    blob = subprocess.run(
        ["zstd", "-q", "--long=27", "-1"], input=CONTENT, capture_output=True, check=True
    ).stdout
    assert decompressed(blob) == CONTENT


@pytest.mark.parametrize("window", [LARGEST + 1, 20 << 3, 31 << 3 | 7])
def test_larger_windows_are_told_as_what_they_are(window: int) -> None:
    with pytest.raises(CorruptError, match=r"zstd with a window of .*at most 128.0 MiB") as caught:
        decompressed(zstd_frame(CONTENT, window))
    assert caught.value.hint.startswith("It is not damaged")


def test_the_window_of_a_single_segment_is_its_content() -> None:
    header = b"\x28\xb5\x2f\xfd\xe0" + (3 << 30).to_bytes(8, "little")
    with pytest.raises(CorruptError, match=r"a window of 3.0 GiB"):
        decompressed(header + bytes(20))
    assert decompressed(pyzstd.compress(bytes(300))) == bytes(300)


def test_windows_of_all_threads_share_one_bound() -> None:
    def blob() -> Iterator[bytes]:
        yield zstd_frame(CONTENT, LARGEST - 1, last=False)
        yield zstd_frame(CONTENT, ONE_MIB)[6:]

    first = zstd_frames(blob())
    assert next(first) == CONTENT
    outputs = []
    other = threading.Thread(target=lambda: outputs.append(b"".join(zstd_frames(blob()))))
    other.start()
    assert decompressed(zstd_frame(CONTENT, ONE_MIB)) == CONTENT  # there is room for it
    other.join(0.1)
    assert not outputs
    first.close()
    other.join(10)
    assert outputs == [CONTENT * 2]


def test_a_dictionary_that_is_too_large_is_no_damage() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    blob = bytearray(lzma.compress(CONTENT, filters=filters))
    # The block's header, at byte 12, says how large it is (The .xz File Format, section 5.3.1).
    assert blob[14:17] == b"\x21\x01\x10"
    blob[16] = 34  # 512 MiB
    blob[20:24] = zlib.crc32(blob[12:20]).to_bytes(4, "little")
    with pytest.raises(CorruptError, match=r"[Mm]emory") as caught:
        decompressed(bytes(blob))
    assert caught.value.hint.startswith("It is not damaged")
