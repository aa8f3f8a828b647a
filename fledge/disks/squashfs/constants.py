"""The constants by which an image is recognized. Every command loads them."""

MAGIC = 0x73717368
"""The first four bytes of an image: ``hsqs``."""
SUPERBLOCK_SIZE = 96
