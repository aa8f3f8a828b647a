"""Compressed data that no compressor writes in a test's time."""


def zstd_frame(content: bytes, window: int, last: bool = True) -> bytes:
    """A zstd frame of one raw block (RFC 8878); ``window`` is its window descriptor, a byte."""
    block = (len(content) << 3 | last).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd" + bytes([0, window]) + block + content
