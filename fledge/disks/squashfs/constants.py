"""What every command needs of squashfs, to recognize an image."""

MAGIC = 0x73717368
"""The first four bytes of an image: ``hsqs``."""
SUPERBLOCK_SIZE = 96
