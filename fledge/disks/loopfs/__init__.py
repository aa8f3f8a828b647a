"""Writes xfs and btrfs images: the kernel fills them through a loop mount."""
