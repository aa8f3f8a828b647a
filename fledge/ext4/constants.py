"""The constants by which an ext4 image is recognized and compared.

They stand apart because `fledge.ext4.format` must not load the code that writes and reads images.
"""

from __future__ import annotations

SUPERBLOCK_OFFSET = 1024
"""Bytes before the superblock of group 0."""

MAGIC = 0xEF53

LOST_AND_FOUND_PATH = b"lost+found"
