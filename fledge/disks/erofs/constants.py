"""The constants of erofs by which its images are recognized."""

MAGIC = 0xE0F5E1E2
SUPERBLOCK_OFFSET = 1024
"""Bytes before the superblock, free for a boot loader."""
