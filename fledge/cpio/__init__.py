"""Writes and reads initramfs: newc archives, compressed or not."""
