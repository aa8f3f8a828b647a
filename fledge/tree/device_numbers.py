"""Device numbers as Linux encodes them in 32 bits (linux/kdev_t.h)."""

from __future__ import annotations


def encode_device(major: int, minor: int) -> int:
    """Return the number of a device (new_encode_dev)."""
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def decode_device(number: int) -> tuple[int, int]:
    """Return the major and minor number of a device (new_decode_dev)."""
    return number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00
