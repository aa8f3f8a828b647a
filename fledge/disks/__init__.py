"""Formats of disk images besides ext4."""
