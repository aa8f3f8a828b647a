"""Writes and reads initramfs: newc archives compressed with gzip."""
